"""The demo's table and pictures."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from flyball_sim.demo.sampling import Sample

MAXIMUM_LAG_PERCENT = 5.0


@dataclass(frozen=True)
class Served:
    """One request as the client saw it: when it was sent on the demo's clock, and its latencies (None: it failed)."""

    seconds: float
    ttft_seconds: float | None
    tpot_seconds: float | None


@dataclass(frozen=True)
class Phase:
    """One run of the trace and what it gave.

    `percentiles` maps "ttft", "tpot" and "e2e" to (median, p99) in seconds; NaN where there is none. `budgets` are
    (from when on the demo's clock, watts); empty while only observing. `sm_mhz` is the lowest, the mean and the highest
    SM clock of the policy's GPUs, `lock_writes` how often one of them was locked.
    """

    name: str
    begin_seconds: float
    end_seconds: float
    requests: int
    errors: int
    output_tokens: int
    attainment_percent: float
    percentiles: Mapping[str, tuple[float, float]]
    budgets: Sequence[tuple[float, int]]
    client_lag_seconds: float
    energy_joules: float
    peak_draw_watts: float
    peak_cap_watts: float
    end_cap_watts: float
    engine_lag_percent: float
    sm_mhz: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    lock_writes: int = 0
    served: Sequence[Served] = ()

    @property
    def mean_watts(self) -> float:
        """Energy over time."""
        return self.energy_joules / (self.end_seconds - self.begin_seconds)

    @property
    def joules_per_token(self) -> float:
        """GPU energy over output tokens; NaN without tokens."""
        return self.energy_joules / self.output_tokens if self.output_tokens else float("nan")

    @property
    def void(self) -> bool:
        """The engines ran too far behind their own clock for the latencies to mean anything."""
        return self.engine_lag_percent > MAXIMUM_LAG_PERCENT


def rows(phases: Sequence[Phase]) -> list[tuple[str, list[str]]]:
    """The report's rows: a label and one text per phase."""

    def milliseconds(key: str, which: int) -> list[str]:
        return [f"{phase.percentiles[key][which] * 1000:.0f} ms" for phase in phases]

    return [
        ("requests", [f"{phase.requests}" for phase in phases]),
        ("failed", [f"{phase.errors}" for phase in phases]),
        ("time to first token, median", milliseconds("ttft", 0)),
        ("time to first token, p99", milliseconds("ttft", 1)),
        ("time per output token, median", [f"{phase.percentiles['tpot'][0] * 1000:.1f} ms" for phase in phases]),
        ("time per output token, p99", [f"{phase.percentiles['tpot'][1] * 1000:.1f} ms" for phase in phases]),
        ("end to end, p99", milliseconds("e2e", 1)),
        ("SLO attainment (client)", [f"{phase.attainment_percent:.1f} %" for phase in phases]),
        ("GPU energy per output token", [f"{phase.joules_per_token:.3f} J" for phase in phases]),
        ("GPU draw, mean", [f"{phase.mean_watts:.0f} W" for phase in phases]),
        ("GPU draw, peak", [f"{phase.peak_draw_watts:.0f} W" for phase in phases]),
        ("SM clock, mean", [f"{phase.sm_mhz[1]:.0f} MHz" for phase in phases]),
        ("SM clock, lowest to highest", [f"{phase.sm_mhz[0]:.0f} to {phase.sm_mhz[2]:.0f} MHz" for phase in phases]),
        ("clock locks written", [f"{phase.lock_writes}" for phase in phases]),
        ("budget", [" then ".join(f"{watts} W" for _, watts in phase.budgets) or "not enforced" for phase in phases]),
        ("sum of caps, peak", [f"{phase.peak_cap_watts:.0f} W" for phase in phases]),
        ("sum of caps, at the end", [f"{phase.end_cap_watts:.0f} W" for phase in phases]),
        ("engines behind their clock", [f"{phase.engine_lag_percent:.2f} %" for phase in phases]),
        ("client behind trace, worst", [f"{phase.client_lag_seconds * 1000:.0f} ms" for phase in phases]),
    ]


def table(phases: Sequence[Phase]) -> Table:
    """The terminal's table, phases side by side."""
    grid = Table(title="What the client saw, and what the (modelled) GPUs drew")
    grid.add_column("")
    for phase in phases:
        grid.add_column(phase.name + (" VOID" if phase.void else ""), justify="right")
    for label, texts in rows(phases):
        grid.add_row(label, *texts)
    return grid


def draw(path: Path, samples: Sequence[Sample], phases: Sequence[Phase], title: str) -> None:
    """Draw power, clocks and latency over time into a PNG."""
    import matplotlib as mpl  # noqa: PLC0415 (half a second and 60 MB that the demo's set-up can do without)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (as above)

    figure, (power, clocks, first, between) = plt.subplots(
        4, 1, figsize=(11, 11), sharex=True, height_ratios=(3, 2, 2, 2), layout="constrained"
    )
    figure.suptitle(title, fontsize=12)
    seconds = [sample.seconds for sample in samples]
    power.plot(seconds, [sample.draw_watts for sample in samples], color="#0b6e99", label="draw of the policy's GPUs")
    power.step(
        seconds, [sample.cap_watts for sample in samples], color="#d9730d", where="post", label="sum of their caps"
    )
    steps = [(max(start, phase.begin_seconds), watts) for phase in phases for start, watts in phase.budgets]
    if steps:
        times, watts = zip(*steps, (phases[-1].end_seconds, steps[-1][1]), strict=True)
        power.step(times, watts, color="#b3261e", where="post", linestyle="dashed", label="budget")
    power.set_ylabel("watts (modelled)")
    power.set_ylim(bottom=0)
    power.legend(loc="lower left", ncols=3, frameon=False)
    clocks.fill_between(
        seconds,
        [sample.sm_mhz[0] for sample in samples],
        [sample.sm_mhz[2] for sample in samples],
        color="#0b6e99",
        alpha=0.15,
        label="lowest to highest",
    )
    clocks.plot(seconds, [sample.sm_mhz[1] for sample in samples], color="#0b6e99", label="mean")
    clocks.set_ylabel("SM clock, MHz")
    clocks.set_ylim(bottom=0)
    clocks.legend(loc="lower left", ncols=2, frameon=False)
    for axis, key, label in (
        (first, "ttft_seconds", "time to first token, ms"),
        (between, "tpot_seconds", "time per output token, ms"),
    ):
        points = [
            (served.seconds, 1000 * getattr(served, key))
            for phase in phases
            for served in phase.served
            if getattr(served, key)
        ]
        if points:
            axis.scatter(*zip(*points, strict=True), s=5, color="#448361", alpha=0.6, linewidths=0)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    between.set_xlabel("seconds since the first request")
    for axis in (power, clocks, first, between):
        axis.grid(visible=True, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, phases[-1].end_seconds)
        for phase in phases[1:]:
            axis.axvline(phase.begin_seconds, color="#999999", linewidth=1)
    for phase in phases:
        power.text(
            phase.begin_seconds, 1.01, phase.name, transform=power.get_xaxis_transform(), va="bottom", fontsize=11
        )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_html(path: Path, picture: Path, phases: Sequence[Phase], title: str, facts: Mapping[str, str]) -> None:
    """Write one self-contained page: the picture, the table, and what is needed to remake both."""
    image = base64.b64encode(picture.read_bytes()).decode()
    head = "".join(f"<th>{html.escape(phase.name)}{' VOID' if phase.void else ''}</th>" for phase in phases)
    body = "".join(
        f"<tr><td>{html.escape(label)}</td>{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
        for label, texts in rows(phases)
    )
    about = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .25em .9em; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child {{ text-align: left }} img {{ max-width: 100% }} dt {{ font-weight: 600 }}
</style></head><body>
<h1>{html.escape(title)}</h1>
<img alt="Power, clocks and latency over time" src="data:image/png;base64,{image}">
<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>
<p>GPUs and engines are simulated: latencies are those of a real HTTP client against engines that keep a modelled step

time, watts and joules are modelled, not measured.</p>
<dl>{about}</dl>
</body></html>
""",
        encoding="utf-8",
    )
