"""A model in memory -> per-item scores on task suites."""
