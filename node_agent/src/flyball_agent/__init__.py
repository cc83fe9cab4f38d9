"""The node agent (no privileges) and the actuator (the only code that writes NVML)."""
