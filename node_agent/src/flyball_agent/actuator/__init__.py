"""The actuator: the only code of Flyball that writes to GPUs.

Standard library and nvidia-ml-py only, so that what runs with privileges stays small enough to read in one sitting:
`server` (sockets) -> `core` (requests, leases) -> `governor` (one GPU) -> `device` (NVML), with `record` as its memory.
"""
