"""Recipe -> stream of (checkpoint name, tensor): plan, kernels, read, write.

``merge_engine.spec`` (the method table and the recipe schema) imports no torch, so that a search file can be
checked in a fraction of a second; everything else is imported from its own module when it is used.
"""
