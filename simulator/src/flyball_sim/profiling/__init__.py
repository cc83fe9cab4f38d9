"""Profiles of modelled engines, for controllers that need one: what `flyball profile` would measure."""

from flyball_sim.profiling.virtual import VirtualRig, ground_of, profile_engine

__all__ = ["VirtualRig", "ground_of", "profile_engine"]
