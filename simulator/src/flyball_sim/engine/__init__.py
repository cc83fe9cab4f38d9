"""Simulated inference engines: a pure continuous-batching core, served over vLLM's HTTP and metric names."""
