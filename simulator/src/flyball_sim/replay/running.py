"""Run all that a question asks, and put the document together."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

from rich.console import Console

from flyball_sim.replay import progress
from flyball_sim.replay.answer import Answer, answer_part, pair_up, question_part, run_measures
from flyball_sim.replay.measures import Measures
from flyball_sim.replay.pool import Job, Simulate, Tell, jobs_of, run_all
from flyball_sim.replay.question import Question
from flyball_sim.replay.record import Record
from flyball_sim.replay.result import MadePart, Result, digest

PACKAGES = ("flyball-sim", "flyball-agent", "flyball-operator", "numpy")


@dataclass(frozen=True, slots=True)
class Ran:
    """What one run sends home: its numbers, and at nominal parameters everything."""

    measures: Measures
    record: Record | None


@dataclass(frozen=True, slots=True)
class RunOne:
    """One job of a replay by some world. `world` is a function of a module, so that any process finds it."""

    world: Simulate[Question, Record]

    def __call__(self, question: Question, job: Job, tell: Tell) -> Ran:
        """Run it and sum it up where it ran: records are large."""
        record = self.world(question, job, tell)
        return Ran(run_measures(record, question), record if job.draw is None else None)


def run(question: Question, world: Simulate[Question, Record], *, processes: int, console: Console) -> Answer:
    """Both modes at nominal parameters and at every draw."""
    jobs = jobs_of(question.draws)
    with progress.bars(console, question.draws) as show:
        ran = run_all(RunOne(world), question, jobs, processes=processes, on_progress=show)
    observe, enforce = (one.record for one in ran if one.record is not None)
    nominal, draws = pair_up([one.measures for one in ran])
    return Answer(observe, enforce, nominal, draws)


def document(question: Question, answer: Answer, *, command: str, seconds: float, processes: int) -> Result:
    """Everything, with the digest of what was asked and answered."""
    asked, answered = question_part(question), answer_part(question, answer)
    return Result(
        digest=digest(asked, answered),
        question=asked,
        answer=answered,
        made=MadePart(
            command=command,
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            seconds=seconds,
            processes=processes,
            controller_seconds=answer.observe.controller_seconds + answer.enforce.controller_seconds,
        ),
    )
