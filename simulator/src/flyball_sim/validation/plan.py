"""The whole validation plan: every row, in the plan's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from flyball_sim.validation import caps, clocks, controllers, latency, linger, power, table
from flyball_sim.validation.rows import Row

CALIBRATION = "calibration"
BEGIN, END = "<!-- begin: flyball-sim validate -->", "<!-- end -->"
ALL_RUNS, POWER_RUNS = 105, 64


class DataError(Exception):
    """A directory or page cannot serve; the message says why, and the mend."""


def checked_data(directory: Path | None) -> Path | None:
    """The directory, once it is known to hold calibration data; None if none was named.

    Raises:
        DataError: it was named and does not.
    """
    if directory is None or (directory / CALIBRATION).is_dir():
        return directory
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise DataError(f"{directory} {what}: name the directory that holds {CALIBRATION}/, or leave the option out")
    raise DataError(f"{directory} holds no {CALIBRATION}/: name the directory above it, or leave the option out")


def parts(data: Path | None) -> Sequence[tuple[str, Callable[[], tuple[Row, ...]]]]:
    """The plan's parts by name, each as a function that works out its rows."""
    return (
        ("latency", latency.rows),
        ("power", lambda: power.rows(data)),
        ("power limits", lambda: caps.rows(data)),
        ("clock locks", clocks.rows),
        ("controllers", lambda: controllers.rows(data)),
        ("after load", linger.rows),
    )


def report(rows: Sequence[Row]) -> str:
    """The table, what may be claimed, the sources and the verdict, in Markdown."""
    return "\n\n".join((table.markdown(rows), claims(rows), table.sources(rows), table.summary(rows)))


def rewritten(page: str, rows: Sequence[Row]) -> str:
    """A Markdown page with the report between its two markers.

    Raises:
        DataError: it lacks one of them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DataError(f"there are no lines {BEGIN!r} and {END!r}: put both where the report is to stand")
    return f"{before}{begin}\n\n{report(rows)}\n\n{end}{after}"


def claims(rows: Sequence[Row]) -> str:
    """What may be said of the simulator, in sentences that hold: one line of Markdown each."""
    runs = [abs(row.error) for row in rows if row.subject.number in {"1", "2", "3"} and row.error is not None]
    pairs = [abs(row.error) for row in rows if row.subject.number in {"9", "10"} and row.error is not None]
    power = [row for row in rows if row.subject.number == "6-8" and row.ours is not None and row.subject.gated]
    lines = [
        (
            f"- Latency: mean absolute error {fmean(runs):.1f} % on {len(runs)} public vLLM runs that were not fitted, "
            f"worst {max(runs):.1f} %. The {ALL_RUNS} runs they are from were not evaluated here."
        )
    ]
    if power:
        lines.append(
            f"- Power at default clocks: leave-one-model-out {power[0].ours:.1f} % on {POWER_RUNS} public H100 points, "
            f"worst model {power[1].ours:.1f} %."
        )
    return "\n".join(
        (
            *lines,
            (
                f"- Power cap: {len(pairs)} public MLPerf pairs within {max(pairs):.3f} of the throughput ratio; "
                "the exponent was fitted on the two of GPT-J."
            ),
            "- Clock scaling between points is modelled, not measured, on H100 and H200.",
            "- No claim of absolute savings on hardware we have not measured.",
        )
    )
