"""What would this policy save on my traffic? An EnergyPolicy against a trace, Observe beside Enforce."""
