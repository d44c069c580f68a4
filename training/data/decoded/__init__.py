"""Decoded images, in memory or in the cache, in the order of their digests."""
