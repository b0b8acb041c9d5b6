"""The device mesh, the one table from logical to mesh axes, and placement of host arrays."""
