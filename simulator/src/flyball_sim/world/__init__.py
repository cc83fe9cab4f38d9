"""Clusters in virtual time: many engines under the real agents' control and the real planner, with faults."""
