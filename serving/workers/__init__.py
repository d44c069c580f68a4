"""Processes: supervisor, worker, loading, and BentoML's private parts."""
