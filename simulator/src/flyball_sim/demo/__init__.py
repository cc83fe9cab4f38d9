"""The whole of Flyball on one machine, end to end: what `make demo` runs."""
