"""Accuracy and latency of the models side by side, load tests, the report."""
