"""AGFT (arXiv 2508.01744): one linear bandit per clock on the engine's counters and the cards' power."""
