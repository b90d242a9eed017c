"""Trains the demo's source models and writes its task suites."""
