"""Accuracy, calibration, robustness and the learning curve."""
