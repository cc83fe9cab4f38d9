"""Simulated GPUs: their types, their physics, and the state file the NVML library of ours reads."""
