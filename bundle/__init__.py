"""What training writes and serving reads: the manifest, the preprocessing and the store."""
