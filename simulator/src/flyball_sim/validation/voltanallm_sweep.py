"""Which objectives put the knees of VoltanaLLM's figure where it has them, and what every policy does.

Prints both as Markdown; minutes of CPU:

    python -m flyball_sim.validation.voltanallm_sweep --data DIR [--policies]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from flyball_sim.validation.voltanallm import (
    OBJECTIVE,
    POLICIES,
    STATIC_HIGH,
    STATIC_LOW,
    Objective,
    Played,
    paper_engine,
    play,
)
from flyball_sim.validation.voltanallm_rows import FIGURE, Point, read_figure, saved_percent

TTFT_SECONDS = (0.15, 0.2, 0.25, 0.3, 0.45, 0.5, 0.8)
TPOT_SECONDS = (0.03, 0.035, 0.04, 0.045, 0.05, 0.055, 0.06)


def knees(figure: Sequence[Point]) -> str:
    """For each objective the mean distance of the statics' attainments from the figure's, in points."""
    model = paper_engine()
    played: list[tuple[Played, Point, str]] = []
    for point in figure:
        played += [(play(STATIC_HIGH, point.rate, model=model), point, "f1410")]
        played += [(play(STATIC_LOW, point.rate, model=model), point, "f1005")]
    lines = ["| objective | mean distance from the figure, points |", "|---|---|"]
    lines += [f"| TTFT {1e3 * bound:g} ms | {_distance(played, ttft=bound):.1f} |" for bound in TTFT_SECONDS]
    lines += [f"| ITL {1e3 * bound:g} ms | {_distance(played, tpot=bound):.1f} |" for bound in TPOT_SECONDS]
    return "\n".join(lines)


def _distance(played: Sequence[tuple[Played, Point, str]], *, ttft: float = 0.0, tpot: float = 0.0) -> float:
    """Of the one attainment whose bound is given."""
    found: list[float] = []
    for ours, point, key in played:
        shown = point.ttft_percent[key] if ttft else point.itl_percent[key]
        if shown is not None:
            found.append(abs((ours.ttft_percent(ttft) if ttft else ours.itl_percent(tpot)) - shown))
    return fmean(found)


def policies(figure: Sequence[Point], objective: Objective) -> str:
    """Each policy at the rates of these points."""
    model = paper_engine()
    lines = ["| requests/s | policy | energy, kJ | saved, % | TTFT, % | ITL, % |", "|---|---|---|---|---|---|"]
    for point in figure:
        high: Played | None = None
        for name, policy in POLICIES.items():
            ours = play(policy, point.rate, model=model, objective=objective)
            high = high or ours
            lines.append(
                f"| {point.rate:g} | {name} | {ours.joules / 1e3:.1f} | {saved_percent(ours, high):.1f} |"
                f" {ours.ttft_percent(objective.ttft_seconds):.1f} | {ours.itl_percent(objective.tpot_seconds):.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=f"directory with {FIGURE}")
    parser.add_argument(
        "--policies", action="store_true", help="every policy at the lightest, a middle and the heaviest rate, too"
    )
    args = parser.parse_args()
    figure = read_figure(args.data / FIGURE)
    print(knees(figure))
    if args.policies:
        print()
        print(policies(figure[::5], OBJECTIVE))


if __name__ == "__main__":
    main()
