"""The profiles that policies name, made of the engines they govern: a replay asks for no file that only a node has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from flyball_agent.profiles import Profile
from flyball_api.controllers.profiled import Profiled
from flyball_sim.profiling.virtual import profile_engine
from flyball_sim.replay.policies import ReplayPolicy
from flyball_sim.world.layout import Layout


def named(policies: Sequence[ReplayPolicy]) -> Iterator[tuple[int, str, str]]:
    """Index, controller type and profile of each policy that names one."""
    for index, policy in enumerate(policies):
        controller = policy.spec.controller
        if isinstance(controller.parameters, Profiled) and controller.parameters.profile is not None:
            yield index, controller.type, controller.parameters.profile


def make(
    policies: Sequence[ReplayPolicy], layout: Layout, governed: Mapping[str, int], seed: int
) -> dict[str, Profile]:
    """What `flyball profile` would make of an engine of each policy that names a profile, by that name.

    A name that several policies share is of the first one's engine; on other cards or another model it does not fit,
    as in a cluster.

    Args:
        policies: of the replay.
        layout: the cluster.
        governed: index of the policy that governs each engine, by the engine's name.
        seed: of lengths and errors of measuring.
    """
    types: dict[str, list[str]] = {}
    first: dict[str, int] = {}
    for index, kind, name in named(policies):
        types.setdefault(name, []).append(kind)
        first.setdefault(name, index)
    found: dict[str, Profile] = {}
    for name, index in first.items():
        engine = next((engine for engine in layout.engines if governed.get(engine.name) == index), None)
        if engine is not None:
            made = profile_engine(engine.model, engine.limits, seed=seed, fits=sorted(set(types[name])))
            found[name] = replace(made, name=name)
    return found
