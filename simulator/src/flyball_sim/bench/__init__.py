"""Measures every process of Flyball on this machine: what `make bench` runs."""
