"""The simulator beside published measurements: what `flyball-sim validate` prints."""
