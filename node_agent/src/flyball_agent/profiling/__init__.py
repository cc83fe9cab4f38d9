"""Profiles of an engine: what to measure (`plan`), who measures it (`rig`), and in which order (`sweep`).

`flyball profile` runs it against a live engine (`live`), the simulator against a modelled one. What each controller
makes of the points is its own (`fits`).
"""
