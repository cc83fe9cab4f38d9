"""Controllers over worlds, traces, loads and SLOs, between the best static setting and a proved lower bound."""
