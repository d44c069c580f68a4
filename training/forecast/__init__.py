"""The gain of more labels: measured by cross-validation, forecast with an interval."""
