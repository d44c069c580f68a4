"""Device, processes, checkpoints, console, locks and interruption."""
