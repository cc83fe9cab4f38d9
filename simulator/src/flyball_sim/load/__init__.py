"""Request traces, and an open-loop client that replays them against engines."""
