"""The page's pictures: small SVG panels that share one time axis and take their colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flyball_sim.replay.objectives import Objective
from flyball_sim.replay.record import Floats

WIDTH, HEIGHT = 10.0, 2.15
LEFT, RIGHT, BOTTOM, TOP = 0.060, 0.972, 0.155, 0.965
"""The plotting area in every panel, as shares of it: the page's cursor counts on them."""

_COLOURS = {
    "ink": "#010101",
    "grid": "#020202",
    "observe": "#030303",
    "enforce": "#040404",
    "limit": "#050505",
    "enforced": "#060606",
    "in-flight": "#070707",
    "unknown": "#080808",
    "reserved": "#090909",
    "free": "#0a0a0a",
    "bad": "#0b0b0b",
}
"""Stand-ins that the SVG's text is searched for: a page that is light or dark decides what they look like."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flyball",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.edgecolor": _COLOURS["grid"],
    "axes.labelcolor": _COLOURS["ink"],
    "axes.linewidth": 0.8,
    "xtick.color": _COLOURS["ink"],
    "ytick.color": _COLOURS["ink"],
    "text.color": _COLOURS["ink"],
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.6,
    "axes.unicode_minus": True,
    "path.simplify_threshold": 0.3,
}
FARTHEST_LIMIT = 2.5
"""A budget of more than so many times the highest draw is said, not drawn: the draw would be a line on the floor."""
LEDGER = (
    ("enforced_watts", "enforced", "enforced"),
    ("in_flight_watts", "in flight", "in-flight"),
    ("unknown_watts", "unknown", "unknown"),
    ("reserved_watts", "reserved", "reserved"),
    ("free_watts", "free", "free"),
)
Series = Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: its key, what it shows, one line on how to read it, and the SVG."""

    key: str
    title: str
    hint: str
    svg: str


@dataclass(frozen=True, slots=True)
class Plotted:
    """What the panels are drawn from."""

    observe: Series
    enforce: Series
    objectives: Sequence[Objective]
    end_seconds: float


def time_unit(end_seconds: float) -> tuple[float, str]:
    """Seconds per unit of the time axis, and the unit."""
    if end_seconds > 3 * 3600:
        return 3600.0, "h"
    return (60.0, "min") if end_seconds > 180 else (1.0, "s")


def panels(plotted: Plotted) -> list[Panel]:
    """Every panel that there is something to show in."""
    found = [
        _draw("power", "Power of all GPUs", "watts; modelled", _power, plotted),
        _draw(
            "clocks", "SM clock", "MHz; the line is the mean of all GPUs, the shade lowest to highest", _clocks, plotted
        ),
        _draw("ttft", "Time to first token", "ms, by time of arrival; solid: median, dotted: p99", _ttft, plotted),
        _draw("tpot", "Time per output token", "ms, by time of arrival; solid: median, dotted: p99", _tpot, plotted),
        _draw("attainment", "Requests that hold the SLO", _window_hint(plotted), _attainment, plotted),
    ]
    if _has(plotted.enforce, "budget_watts"):
        hint = "watts; what the policy promised of its budget, as its status said under Enforce"
        found.append(_draw("ledger", "Budget ledger", hint, _ledger, plotted))
    found.append(_draw("load", "Requests", "running and waiting in all engines, under both modes", _load, plotted))
    return found


def _window_hint(plotted: Plotted) -> str:
    windows = sorted({objective.window_seconds for objective in plotted.objectives})
    return f"% of those that arrived in the last {' or '.join(f'{window:g}' for window in windows)} s"


def _draw(key: str, title: str, hint: str, fill: Callable[[Axes, Plotted], None], plotted: Plotted) -> Panel:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))
        unit, name = time_unit(plotted.end_seconds)
        axes.set_xlim(0, plotted.end_seconds / unit)
        axes.grid(visible=True, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        fill(axes, plotted)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} {name}")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Panel(key, title, hint, _page_svg(text.getvalue(), key))


def _page_svg(text: str, key: str) -> str:
    """The SVG as the page wants it: no prologue, sizes of its own, unique ids, colours by name."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' id="[a-zA-Z_0-9.]+_\d+"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = svg.replace("xlink:href", "href")
    for name, stand_in in _COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    return svg.replace("<svg ", f'<svg role="img" preserveAspectRatio="none" data-panel="{key}" ', 1).strip()


def _has(series: Series, name: str) -> bool:
    return name in series and bool(np.isfinite(series[name]).any())


def _times(series: Series, plotted: Plotted, name: str = "seconds") -> Floats:
    return series[name] / time_unit(plotted.end_seconds)[0]


def _both(plotted: Plotted) -> Iterator[tuple[str, Series]]:
    yield "observe", plotted.observe
    yield "enforce", plotted.enforce


@contextmanager
def _roof(axes: Axes, *, least: float = 0.0) -> Iterator[list[float]]:
    """Collect what must be seen and set the axis from zero to a bit above the highest of it."""
    values: list[float] = [least]
    yield values
    axes.set_ylim(0, 1.08 * max(values) or 1.0)


def _line(axes: Axes, times: Floats, values: Floats, colour: str, **style: Any) -> None:
    axes.plot(times, values, color=_COLOURS[colour], **({"linewidth": 1.25} | style))


def _highest(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else 0.0


def _power(axes: Axes, plotted: Plotted) -> None:
    with _roof(axes) as seen:
        for colour, series in _both(plotted):
            _line(axes, _times(series, plotted), series["watts"], colour)
            seen.append(_highest(series["watts"]))
        enforce, roof = plotted.enforce, FARTHEST_LIMIT * max(seen)
        styles: Mapping[str, Any] = {"caps": {"linewidth": 0.9}, "budget": {"linestyle": (0, (5, 3))}}
        above = []
        for name, style in styles.items():
            values = enforce.get(f"{name}_watts")
            if values is None or not np.isfinite(values).any():
                continue
            axes.step(_times(enforce, plotted), values, where="post", color=_COLOURS["limit"], **style)
            if _highest(values) <= roof:
                seen.append(_highest(values))
            else:
                above.append(f"{name} up to {_highest(values):,.0f} W")
    if above:
        text = f"{', '.join(above)}: above the picture"
        axes.text(1, 0.04, text, transform=axes.transAxes, ha="right", va="bottom", color=_COLOURS["limit"])


def _clocks(axes: Axes, plotted: Plotted) -> None:
    with _roof(axes) as seen:
        for colour, series in _both(plotted):
            times = _times(series, plotted)
            axes.fill_between(
                times, series["sm_mhz_low"], series["sm_mhz_high"], color=_COLOURS[colour], alpha=0.16, linewidth=0
            )
            _line(axes, times, series["sm_mhz_mean"], colour)
            seen.append(_highest(series["sm_mhz_high"]))


def _latency(axes: Axes, plotted: Plotted, name: str, bounds: Sequence[float]) -> None:
    highest, lowest = 0.0, np.inf
    for colour, series in _both(plotted):
        times = _times(series, plotted, "latency_seconds")
        for which, style in (("p99", {"linestyle": (0, (1, 1.2)), "linewidth": 1.1}), ("p50", {})):
            values = 1000 * series[f"{name}_{which}_seconds"]
            _line(axes, times, values, colour, **style)
            finite = values[np.isfinite(values)]
            highest = max(highest, _highest(values))
            lowest = min(lowest, float(finite.min())) if len(finite) else lowest
    shown = [1000 * bound for bound in bounds if np.isfinite(bound)]
    for bound in shown:
        axes.axhline(bound, color=_COLOURS["bad"], linewidth=1.0, linestyle=(0, (5, 3)))
    top = max([highest, *shown, 1.0])
    if np.isfinite(lowest) and top > 20 * max(lowest, 1e-3):
        axes.set_yscale("log")
        axes.set_ylim(0.7 * lowest, 1.6 * top)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.08 * top)


def _ttft(axes: Axes, plotted: Plotted) -> None:
    _latency(axes, plotted, "ttft", [objective.ttft_seconds for objective in plotted.objectives])


def _tpot(axes: Axes, plotted: Plotted) -> None:
    _latency(axes, plotted, "tpot", [objective.tpot_seconds for objective in plotted.objectives])


def _attainment(axes: Axes, plotted: Plotted) -> None:
    targets = sorted({objective.target_percent for objective in plotted.objectives})
    lowest = min(targets)
    for colour, series in _both(plotted):
        values = 100 * series["attainment"]
        _line(axes, _times(series, plotted), values, colour)
        finite = values[np.isfinite(values)]
        lowest = min(lowest, float(finite.min())) if len(finite) else lowest
    times, values = _times(plotted.enforce, plotted), 100 * plotted.enforce["attainment"]
    out = np.nan_to_num(values, nan=100.0) < max(targets)
    axes.fill_between(times, 0, 1, where=out.tolist(), color=_COLOURS["bad"], alpha=0.14, linewidth=0,
                      transform=axes.get_xaxis_transform())  # fmt: skip
    for target in targets:
        axes.axhline(target, color=_COLOURS["bad"], linewidth=1.0, linestyle=(0, (5, 3)))
    span = max(1.0, 100 - lowest)
    axes.set_ylim(max(0.0, 100 - 1.12 * span), 100 + 0.06 * span)


def _ledger(axes: Axes, plotted: Plotted) -> None:
    series = plotted.enforce
    times = _times(series, plotted)
    parts = [(np.nan_to_num(series[name]), colour) for name, _, colour in LEDGER if name in series]
    base = np.zeros(len(times))
    for values, colour in parts:
        axes.fill_between(times, base, base + values, step="post", color=_COLOURS[colour], alpha=0.75, linewidth=0)
        base = base + values
    axes.step(times, series["budget_watts"], where="post", color=_COLOURS["limit"], linestyle=(0, (5, 3)))
    axes.set_ylim(0, 1.08 * max(_highest(base), _highest(series["budget_watts"])))


def _load(axes: Axes, plotted: Plotted) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    with _roof(axes, least=1.0) as seen:
        for colour, series in _both(plotted):
            total = series["running"] + series["waiting"]
            _line(axes, _times(series, plotted), total, colour)
            seen.append(_highest(total))
