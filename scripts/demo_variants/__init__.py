"""Models made from the demo models: see `build`."""
