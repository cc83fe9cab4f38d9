"""Runs a plan on a rig within a time budget, leaving out what is measured already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint, Profile
from flyball_agent.profiling.plan import LoadTask, PrefillTask, SweepPlan, Task, keys_of
from flyball_agent.profiling.rig import Rig

Point = DecodePoint | PrefillPoint | LoadPoint


@dataclass(frozen=True, slots=True)
class SweepEnd:
    """How a sweep ended.

    Attributes:
        points: everything measured, in this run and before, by name.
        left: points of the plan that are not there.
    """

    points: Mapping[str, Point]
    left: int


def run_sweep(
    plan: SweepPlan,
    rig: Rig,
    *,
    measured: Mapping[str, Point],
    keep: Callable[[str, Point], None],
    time_left: Callable[[], bool],
) -> SweepEnd:
    """Measure what is missing.

    Args:
        plan: what there is to measure.
        rig: measures it.
        measured: points of an earlier run, by name.
        keep: told of each new point at once, so that an end at any moment loses one point at most.
        time_left: asked before each point; False ends the sweep.

    Raises:
        RigError: the rig cannot go on; what was measured has been kept.
    """
    points = dict(measured)
    for task in plan.tasks:
        missing = [key for key in keys_of(task) if key not in points]
        if not missing:
            continue
        if not time_left():
            break
        # Closed at once when time is up: a batch must not go on decoding for nobody.
        for key, point in zip(missing, _measure(rig, _only(task, missing)), strict=False):
            points[key] = point
            keep(key, point)
            if not time_left():
                break
    return SweepEnd(points, sum(key not in points for key in plan.names()))


def _only(task: Task, missing: list[str]) -> Task:
    if isinstance(task, LoadTask):
        return task
    return replace(task, clocks_mhz=tuple(sm_mhz for sm_mhz in task.clocks_mhz if task.key(sm_mhz) in missing))


def _measure(rig: Rig, task: Task) -> Iterator[Point]:
    if isinstance(task, LoadTask):
        yield rig.load(task)
    elif isinstance(task, PrefillTask):
        yield from rig.prefill(task)
    else:
        yield from rig.decode(task)


def with_points(profile: Profile, plan: SweepPlan, points: Mapping[str, Point]) -> Profile:
    """The profile with these points, in the plan's order."""
    ordered = [points[key] for key in plan.names() if key in points]
    return replace(
        profile,
        decode=tuple(point for point in ordered if isinstance(point, DecodePoint)),
        prefill=tuple(point for point in ordered if isinstance(point, PrefillPoint)),
        load=tuple(point for point in ordered if isinstance(point, LoadPoint)),
    )
