"""Load tests with locust."""
