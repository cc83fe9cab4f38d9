"""Traces by name: `make_trace("poisson", ...)`, or as text, `open_trace("poisson:rate=3,seconds=600")`.

A generated trace is the same for the same seed and options, in every process. Arrivals and lengths are drawn apart, so
that other lengths leave the arrivals as they are.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from flyball_sim.load import conversation
from flyball_sim.load.kinds import KINDS, Option, Wish
from flyball_sim.load.lengths import LENGTHS, Lengths, fixed
from flyball_sim.load.measured import AZURE_TRACE, data_file
from flyball_sim.load.servegen import SERVEGEN_DAYS
from flyball_sim.load.traces import MOST_TOKENS, TraceError, TraceRequest, read_trace, scale

__all__ = ["KINDS", "make_trace", "open_trace", "scale"]

DEFAULT_REQUESTS_PER_SECOND: Final = 5.0
MOST_REQUESTS: Final = 50_000_000
"""A trace is held in memory: at most this many requests may be expected of a generator."""


MEASURED: Final = "azure"
"""The name under which `open_trace` finds the Azure conversation trace in the data directory."""

GENERATED: Final = "generated"
"""The name of `conversation.generate`, whose mean rate drifts with the trace: what the demo and the bench replay."""

_COMMON: Final[Mapping[str, Option]] = MappingProxyType(
    {
        "rate": Option(None, 1e-6, 1e6, "mean requests per second over the whole trace"),
        "seconds": Option(None, 1e-3, 1e8, "length of the trace"),
        "seed": Option(None, 0, 2**63, "of all that is random"),
        "prompt": Option(None, 1, MOST_TOKENS, "tokens of every prompt"),
        "answer": Option(None, 1, MOST_TOKENS, "tokens of every answer"),
    }
)
_TEXTS: Final = ("lengths", "model")
_WHOLE: Final = ("answer", "prompt", "seed")


def make_trace(
    kind: str,
    *,
    seconds: float | None = None,
    requests_per_second: float | None = None,
    seed: int = 1,
    lengths: str | Lengths | None = None,
    model: str | None = None,
    data: Path | None = None,
    **options: float,
) -> tuple[TraceRequest, ...]:
    """Generate a trace.

    Args:
        kind: one of `KINDS`.
        seconds: its length; None: the kind's, or the `day` that is asked for.
        requests_per_second: its mean rate over the whole trace; None: 5.
        seed: of all that is random.
        lengths: a name of `LENGTHS`, or what draws them; None: the kind's.
        model: of kinds that have several.
        data: directory of the measured data, for what reads it.
        options: numbers that the kind takes (see `KINDS`), or `prompt` and `answer` tokens instead of lengths.

    Raises:
        TraceError: a name is not known, a number out of bounds, the data is missing, or no request would arrive.
    """
    kind = _one_of("kind of trace", kind, KINDS)
    made = KINDS[kind]
    asked: dict[str, float] = {
        "seconds": options.get("day", made.seconds) if seconds is None else seconds,
        "seed": seed,
    }
    asked |= {} if requests_per_second is None else {"rate": requests_per_second}
    numbers = _numbers(kind, {**asked, **options}, {**_COMMON, **made.options})
    wish = Wish(numbers["seconds"], int(numbers["seed"]), numbers, _model(kind, model), data)
    draw = _fixed(kind, numbers, lengths) or _lengths(lengths or made.lengths.format(model=wish.model), data)
    rate = wish.numbers.get("rate", DEFAULT_REQUESTS_PER_SECOND)
    _refuse_too_many(wish, rate)
    variation = wish.numbers.get("cv", SERVEGEN_DAYS[wish.model].gap_variation if wish.model else 1.0)
    rng = wish.rng("lengths")
    arrivals = made.profile(wish).with_mean(rate).arrivals(variation, wish.rng("arrivals"))
    requests = tuple(TraceRequest(arrival, *draw(rng)) for arrival in arrivals)
    if not requests:
        raise TraceError(f"{kind}: no request arrives in {wish.seconds:g} s: ask for more seconds or a higher rate")
    return requests


def _refuse_too_many(wish: Wish, rate: float) -> None:
    if rate * wish.seconds > MOST_REQUESTS:
        raise TraceError(
            f"{rate:g} requests/s for {wish.seconds:g} s are {rate * wish.seconds:.3g} requests:"
            f" ask for at most {MOST_REQUESTS}"
        )


def _numbers(kind: str, asked: Mapping[str, float], known: Mapping[str, Option]) -> dict[str, float]:
    """The options with their defaults, checked."""
    numbers = {name: option.default for name, option in known.items() if option.default is not None}
    for name, value in asked.items():
        option = known[_one_of(f"option of {kind}", name, known)]
        if not (math.isfinite(value) and option.low <= value <= option.high):
            raise TraceError(
                f"{kind}: {name} is {value:g}: give a number from {option.low:g} to {option.high:g} ({option.about})"
            )
        numbers[name] = value
    return numbers


def _model(kind: str, model: str | None) -> str:
    models = KINDS[kind].models
    if model is None:
        return models[0] if models else ""
    if not models:
        raise TraceError(f"{kind}: it has no models, so leave {model!r} out")
    return _one_of(f"model of {kind}", model, models)


def _fixed(kind: str, numbers: Mapping[str, float], lengths: str | Lengths | None) -> Lengths | None:
    given = [name for name in ("prompt", "answer") if name in numbers]
    if not given:
        return None
    if len(given) == 1 or lengths is not None:
        raise TraceError(f"{kind}: {' and '.join(given)} alone or beside lengths: give prompt and answer, or lengths")
    return fixed(int(numbers["prompt"]), int(numbers["answer"]))


def _lengths(lengths: str | Lengths, data: Path | None) -> Lengths:
    if not isinstance(lengths, str):
        return lengths
    return LENGTHS[_one_of("kind of lengths", lengths, LENGTHS)](data)


def _one_of(what: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise TraceError(
        f"{name!r} is no {what}: give {' or '.join(part for part in (', '.join(near[:-1]), near[-1]) if part)}"
    )


def open_trace(
    text: str, *, seconds: float | None = None, seed: int = 1, data: Path | None = None
) -> tuple[TraceRequest, ...]:
    """A trace as users name it.

    One of

    * the path of a CSV file; `stream_trace` says of which forms;
    * `azure`, the Azure conversation trace in the data directory;
    * `generated`, the conversation that the demo replays;
    * the name of a kind with its options, as in `poisson:rate=3,seconds=600,lengths=code`,
      `gamma:cv=3,prompt=1024,answer=128` or `servegen:m-large,rate=8`.

    A file that is named as a kind is given with its folder, `./poisson`.

    Args:
        text: the name.
        seconds: how much of a file is read, and how long a generated trace is unless its own options say.
        seed: of a generated trace, unless its own options say.
        data: directory of the measured data.

    Raises:
        TraceError: there is no such file or kind, an option is wrong, or the file cannot be read.
    """
    name, colon, options = text.partition(":")
    if name in {GENERATED, MEASURED} and colon:
        raise TraceError(
            f"trace {text!r}: {name} takes no options: ask for a conversation, or cut it with the command's"
        )
    if name == GENERATED:
        return conversation.generate(3600.0 if seconds is None else seconds, seed=seed)
    if name == MEASURED:
        return read_trace(data_file(data, AZURE_TRACE), duration_seconds=seconds)
    if name in KINDS:
        return _from_text(name, options, seconds=seconds, seed=seed, data=data)
    if _is_path(text):
        return read_trace(Path(text), duration_seconds=seconds)
    names = [*KINDS, GENERATED, MEASURED]
    near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names)
    raise TraceError(
        f"trace {text!r}: there is neither such a file nor such a generator: give a CSV file or one of {near}"
    )


def _is_path(text: str) -> bool:
    if text.endswith(".csv") or "/" in text:
        return True
    try:
        return bool(text) and Path(text).exists()
    except OSError:  # longer than a file's name can be
        return False


def _from_text(
    kind: str, text: str, *, seconds: float | None, seed: int, data: Path | None
) -> tuple[TraceRequest, ...]:
    words: dict[str, str] = {}
    numbers: dict[str, float] = {}
    known = {**_COMMON, **KINDS[kind].options}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            name, value = "model", part
        if name in words or name in numbers:
            raise TraceError(f"{kind}: {name} is given twice: give it once")
        if name in _TEXTS:
            words[name] = value
        else:
            numbers[_one_of(f"option of {kind}", name, [*known, *_TEXTS])] = _number(kind, name, value)
    return make_trace(
        kind,
        seconds=numbers.pop("seconds", seconds),
        requests_per_second=numbers.pop("rate", None),
        seed=int(numbers.pop("seed", seed)),
        lengths=words.get("lengths"),
        model=words.get("model"),
        data=data,
        **numbers,
    )


def _number(kind: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise TraceError(f"{kind}: {name} is {text!r}: give a number") from None
    if name not in _WHOLE:
        return number
    if not number.is_integer():
        raise TraceError(f"{kind}: {name} is {text}: give a whole number")
    return int(number)
