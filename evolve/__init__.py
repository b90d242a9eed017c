"""The search: ask/tell, Ray fleet, journal, trackers, command line."""

__version__ = "0.1.0"
