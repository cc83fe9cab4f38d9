"""Rows 6 to 8: H100 power over batch, every model predicted by a fit to the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from flyball_sim.gpu.fits import PowerPoint, leave_one_model_out, serving_points
from flyball_sim.gpu.types import gpu_type
from flyball_sim.validation.rows import NEEDS_DATA, Row, Subject, at_most, not_run, relative

SOURCE = "ML.ENERGY benchmark v3 (Apache-2.0), H100, lm-arena-chat, bf16, dense models"
SMALL, LARGE = "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct"
PUBLISHED_WATTS = (
    ("6", "Llama-3.1-8B", (SMALL, 1), ((8, 486.0), (64, 610.0), (256, 691.0))),
    ("7", "Llama-3.3-70B on 4", (LARGE, 4), ((8, 441.0), (128, 546.0), (512, 623.0))),
)
PUBLISHED_JOULES = ((8, 0.455), (64, 0.119), (256, 0.077))


def rows(data: Path | None) -> tuple[Row, ...]:
    """Rows 6 to 8 and the gate over all runs.

    Raises:
        CalibrationDataError: the directory lacks a file of these rows.
    """
    held: tuple[PowerPoint, ...] = ()
    free: tuple[PowerPoint, ...] = ()
    if data is not None:
        runs = serving_points(data / "calibration")
        held = leave_one_model_out(runs, gpu_type("H100-SXM5").power.static_watts)
        free = leave_one_model_out(runs)
    return (*watts_over_batch(held), *joules_per_token(held), *all_runs(held), *free_static(free))


def watts_over_batch(points: Sequence[PowerPoint]) -> tuple[Row, ...]:
    """Rows 6 and 7: watts of one card."""
    found = []
    for number, name, setup, published in PUBLISHED_WATTS:
        for batch, watts in published:
            subject = _subject(number, f"H100 power, {name}, batch {batch}, model left out", "W")
            point = _nearest(points, setup, batch)
            if point is None:
                found.append(not_run(subject, NEEDS_DATA, watts))
            else:
                found.append(relative(subject, point.predicted_watts, watts, tolerance_percent=10.0))
    return tuple(found)


def joules_per_token(points: Sequence[PowerPoint]) -> tuple[Row, ...]:
    """Row 8: predicted watts over the measured rate of tokens."""
    found = []
    for batch, joules in PUBLISHED_JOULES:
        subject = _subject("8", f"H100 energy per token, Llama-3.1-8B, batch {batch}, model left out", "J")
        point = _nearest(points, (SMALL, 1), batch)
        if point is None:
            found.append(not_run(subject, NEEDS_DATA, joules))
        else:
            ours = point.predicted_watts * point.gpus / point.tokens_per_second
            found.append(relative(subject, ours, joules, tolerance_percent=10.0))
    return tuple(found)


def all_runs(points: Sequence[PowerPoint]) -> tuple[Row, ...]:
    """The gate: mean error over all runs, of the worst model, and of the worst run; the fit's own error beside them."""
    mean = _subject("6-8", "H100 power, mean absolute error, model left out", "%", gated=True)
    model = _subject("6-8", "H100 power, mean error of the worst model left out", "%", gated=True)
    run = _subject("6-8", "H100 power, worst run of a model left out", "%")
    inside = Subject("6-8", "H100 power, mean absolute error of the fit to all models", "%", SOURCE, "fitted")
    if not points:
        return tuple(not_run(subject, NEEDS_DATA) for subject in (mean, model, run, inside))
    errors = [100.0 * abs(point.error) for point in points]
    groups = _by_model(points)
    worst = max(groups, key=lambda group: groups[group])
    worst_point = max(points, key=lambda point: abs(point.error))
    in_sample = [100.0 * abs(point.in_sample_watts / point.measured_watts - 1.0) for point in points]
    return (
        at_most(mean, fmean(errors), bound=7.5, note=f"{len(points)} runs of {len(groups)} models"),
        at_most(model, groups[worst], bound=15.0, note=worst),
        at_most(run, max(errors), bound=20.0, note=f"{worst_point.model}, batch {worst_point.batch:.0f}"),
        at_most(inside, fmean(in_sample), bound=7.5),
    )


def free_static(points: Sequence[PowerPoint]) -> tuple[Row, Row]:
    """The same with the static power fitted too; the shipped one is held where the cap line puts it."""
    mean = _subject("6-8", "the same mean with the static power fitted each time too", "%")
    model = _subject("6-8", "the same worst model with the static power fitted each time too", "%")
    if not points:
        return not_run(mean, NEEDS_DATA), not_run(model, NEEDS_DATA)
    overall = fmean(100.0 * abs(point.error) for point in points)
    return at_most(mean, overall, bound=7.5), at_most(model, max(_by_model(points).values()), bound=15.0)


def _by_model(points: Sequence[PowerPoint]) -> dict[str, float]:
    """Mean absolute error of each model that was left out, percent."""
    errors: dict[str, list[float]] = {}
    for point in points:
        errors.setdefault(point.group, []).append(100.0 * abs(point.error))
    return {group: fmean(found) for group, found in errors.items()}


def _subject(number: str, what: str, unit: str, *, gated: bool = False) -> Subject:
    return Subject(number, what, unit, SOURCE, "not fitted", gated)


def _nearest(points: Sequence[PowerPoint], setup: tuple[str, int], batch: int) -> PowerPoint | None:
    same = [point for point in points if (point.model, point.gpus) == setup]
    return min(same, key=lambda point: abs(point.batch - batch), default=None)
