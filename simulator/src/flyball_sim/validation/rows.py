"""One comparison of the simulator with a published number, and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Standing = Literal["fitted", "not fitted"]
Verdict = Literal["pass", "miss", "not run"]
NEEDS_DATA = "needs --data with calibration/"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a row is about.

    Attributes:
        number: the row's number in the validation plan, or the name of one beside it.
        what: the quantity and the setup it was measured in.
        unit: of our value and of the published one.
        source: where the published value stands.
        standing: whether this measurement, or one of its own series, took part in fixing the model's numbers.
        gated: whether a miss makes `flyball-sim validate` fail.
    """

    number: str
    what: str
    unit: str
    source: str
    standing: Standing
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A subject, our value, the published one and the verdict.

    `published` is a value, a range (lowest, highest), or none where the row sums errors up and only a bound exists.
    `error` and `tolerance` are in `error_unit`; all are none in a row that is not run, whose `note` says why.
    """

    subject: Subject
    ours: float | None
    published: float | tuple[float, float] | None
    error: float | None
    tolerance: float | None
    error_unit: str
    verdict: Verdict
    note: str = ""

    @property
    def fails(self) -> bool:
        """Whether the command fails because of this row."""
        return self.subject.gated and self.verdict == "miss"


def relative(subject: Subject, ours: float, published: float, *, tolerance_percent: float, note: str = "") -> Row:
    """Judge the error in percent of the published value."""
    error = 100.0 * (ours / published - 1.0)
    return _judged(subject, ours, published, error, allowed=(tolerance_percent, "%"), note=note)


def difference(
    subject: Subject, ours: float, published: float, *, tolerance: float, error_unit: str = "", note: str = ""
) -> Row:
    """Judge the plain difference, in `error_unit` (none: a ratio)."""
    return _judged(subject, ours, published, ours - published, allowed=(tolerance, error_unit), note=note)


def within(
    subject: Subject,
    ours: float,
    published: tuple[float, float],
    *,
    tolerance: float = 0.0,
    error_unit: str = "",
    note: str = "",
) -> Row:
    """Judge by how far the value lies outside the published range: 0 inside it."""
    lowest, highest = published
    error = min(ours - lowest, 0.0) + max(ours - highest, 0.0)
    return _judged(subject, ours, published, error, allowed=(tolerance, error_unit), note=note)


def at_most(subject: Subject, ours: float, *, bound: float, note: str = "") -> Row:
    """Judge a sum of errors, which has no published value: it is its own error."""
    return _judged(subject, ours, None, ours, allowed=(bound, subject.unit), note=note)


def not_run(subject: Subject, note: str, published: float | tuple[float, float] | None = None) -> Row:
    """A row without a value of ours; `note` says why."""
    return Row(subject, None, published, None, None, "", "not run", note)


def _judged(
    subject: Subject,
    ours: float,
    published: float | tuple[float, float] | None,
    error: float,
    *,
    allowed: tuple[float, str],
    note: str,
) -> Row:
    tolerance, error_unit = allowed
    verdict: Verdict = "pass" if abs(error) <= tolerance else "miss"
    return Row(subject, ours, published, error, tolerance, error_unit, verdict, note)
