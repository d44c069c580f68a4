"""Faults, fuzzing and soak tests of the service."""
