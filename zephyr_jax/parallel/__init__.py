"""The device mesh, sharding rules, multi-host coordination, and placement of host arrays."""
