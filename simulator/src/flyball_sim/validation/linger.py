"""Row 19: what a card draws after its load has gone."""

from __future__ import annotations

from flyball_sim.gpu.model import GpuLoad, GpuSettings, booted, step
from flyball_sim.gpu.types import gpu_type
from flyball_sim.validation.rows import Row, Subject, within

LOG = "power log of an RTX A6000 serving Llama-3.1-8B, 200 ms (LLMServingSim repository)"
LOADED_SECONDS = 10.0
FULL_LOAD = GpuLoad(0.9, 0.6, 1.0)
WAITING = GpuLoad(0.0, 0.0, 0.0)


def watts_after_load(seconds: tuple[float, ...]) -> tuple[float, ...]:
    """True watts of the card at these times (rising) after its kernels end; the process stays."""
    card = gpu_type("RTX-A6000")
    settings = GpuSettings(card.cap_default_watts)
    state = step(card, booted(card, 1), FULL_LOAD, settings, LOADED_SECONDS)
    found = []
    for at in seconds:
        state = step(card, state, WAITING, settings, LOADED_SECONDS + at - state.time_seconds)
        found.append(state.power_watts)
    return tuple(found)


def rows() -> tuple[Row, ...]:
    """Row 19: the fall, the linger and the end of it; the log gives no more than this shape."""
    times = (2.0, 10.0, 20.0)
    published = ((89.0, 97.0), (89.0, 97.0), (33.0, 35.0))
    return tuple(
        within(
            Subject("19", f"RTX A6000, {at:.0f} s after its load ended", "W", LOG, "fitted"),
            watts,
            shape,
            tolerance=5.0,
            error_unit="W",
        )
        for at, watts, shape in zip(times, watts_after_load(times), published, strict=True)
    )
