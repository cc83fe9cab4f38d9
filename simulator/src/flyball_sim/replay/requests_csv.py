"""`requests.csv`: every request of both nominal runs, side by side."""

from __future__ import annotations

import csv
import io
import math

from flyball_sim.replay.answer import Answer
from flyball_sim.replay.record import OUTCOMES

COLUMNS = (
    "arrival_seconds", "prompt_tokens", "output_tokens",
    "observe_outcome", "observe_ttft_seconds", "observe_tpot_seconds", "observe_finished_seconds",
    "enforce_outcome", "enforce_ttft_seconds", "enforce_tpot_seconds", "enforce_finished_seconds",
)  # fmt: skip


def to_csv(answer: Answer) -> str:
    """One line per request, by arrival; a latency that there is not is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    observe, enforce = answer.observe.requests, answer.enforce.requests
    for index in range(len(observe)):
        row = [
            f"{observe.arrival_seconds[index]:.6f}",
            int(observe.prompt_tokens[index]),
            int(observe.output_tokens[index]),
        ]
        for run in (observe, enforce):
            row.append(OUTCOMES[run.outcome[index]])
            row += [_number(values[index]) for values in (run.ttft_seconds, run.tpot_seconds, run.finished_seconds)]
        writer.writerow(row)
    return text.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
