"""The actuator: small, privileged, the only code that writes NVML."""
