"""Merge kernels: one pure function per method, and what it needs to know before it can run.

A kernel takes flat tensors and returns a flat tensor, to be rounded to the merge dtype; it never
changes its inputs and works on any run of elements by itself, so that the caller may cut tensors into pieces
as it likes and compile the kernel or not: the bits are the same.
"""
