"""Optimization: losses, augmentation, batches, the loops, metrics."""
