"""Evaluation of accepting answers and of suggesting images to label, by draws."""
