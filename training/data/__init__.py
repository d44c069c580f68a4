"""Image sources, decoding, stored rows, fractions; imports no torch."""
