"""HTTP connections: their limits, and the order of what they are answered."""
