"""Simulated inference engines: a pure continuous-batching core, served over vLLM's HTTP and metric names."""

from flyball_sim.engine.compiling import prefer_compiled

prefer_compiled(__path__)
