"""Processes, servers, sessions, statistics, provenance."""
