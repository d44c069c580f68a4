"""Parts of `scripts/containers`; they need only the standard library."""
