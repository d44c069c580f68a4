"""The study behind the README's tables."""
