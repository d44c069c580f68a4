"""What `scripts/containers` is made of; the standard library is enough for it."""
