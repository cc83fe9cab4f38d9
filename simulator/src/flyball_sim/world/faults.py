"""What goes wrong in a run, and when. Each fault is a value; `docs/virtual-time.md` lists how they are written."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, get_args, get_origin, get_type_hints

import yaml


class FaultError(ValueError):
    """A fault that cannot be understood, or names what is not there; the message says the mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentGone:
    """A node's agent is gone for a while.

    Attributes:
        node: whose.
        at_seconds: when.
        for_seconds: for how long.
        how: hung: the process stands still, and the actuator notices when its lease runs out; killed: its socket is
            closed at once, and another process starts afterwards.
    """

    KIND: ClassVar[str] = "agent-gone"
    node: str
    at_seconds: float
    for_seconds: float
    how: Literal["hung", "killed"] = "hung"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorGone:
    """The operator is gone for a while; another process leads afterwards, when the dead one's Lease has run out."""

    KIND: ClassVar[str] = "operator-gone"
    at_seconds: float
    for_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiGone:
    """The API server answers nobody for a while."""

    KIND: ClassVar[str] = "api-gone"
    at_seconds: float
    for_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLost:
    """A GPU falls off the bus and stays away; the engine on it dies.

    Attributes:
        node: where.
        gpu: its NVML index.
        at_seconds: when.
        requests: lost, or sent again by their clients.
    """

    KIND: ClassVar[str] = "gpu-lost"
    node: str
    gpu: int
    at_seconds: float
    requests: Literal["lost", "retried"] = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleMetrics:
    """Engines' metrics pages are of no use for a while.

    Attributes:
        at_seconds: when.
        for_seconds: for how long.
        engine: pod name; empty: all engines.
        how: silent: no answer comes; frozen: the page of the beginning is served again and again.
    """

    KIND: ClassVar[str] = "stale-metrics"
    at_seconds: float
    for_seconds: float
    engine: str = ""
    how: Literal["silent", "frozen"] = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedGrants:
    """Plans reach agents late for a while.

    Attributes:
        at_seconds: when.
        for_seconds: for how long.
        delay_seconds: on top of a watch's usual delay.
        node: whose agent; empty: all.
    """

    KIND: ClassVar[str] = "delayed-grants"
    at_seconds: float
    for_seconds: float
    delay_seconds: float
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCut:
    """A person changes a policy's power budget, down or up.

    Attributes:
        at_seconds: when.
        watts: the new budget.
        policy: its name; empty: the only one there is.
    """

    KIND: ClassVar[str] = "budget"
    at_seconds: float
    watts: int
    policy: str = ""


Fault = AgentGone | OperatorGone | ApiGone | GpuLost | StaleMetrics | DelayedGrants | BudgetCut
FAULTS: Final[Mapping[str, type[Fault]]] = types.MappingProxyType({kind.KIND: kind for kind in get_args(Fault)})


def _word(field: str) -> str:
    return field.removesuffix("_seconds").replace("_", "-")


def parse_fault(text: str) -> Fault:
    """A fault from one word: `agent-gone:node=node-0,at=60,for=30`.

    Raises:
        FaultError: it is none.
    """
    kind, _, rest = text.strip().partition(":")
    values: dict[str, str] = {}
    for piece in filter(None, rest.split(",")):
        name, equals, value = piece.partition("=")
        if not equals:
            raise FaultError(f"fault {text!r}: {piece!r} is no name=value: write {_example(kind)}")
        if name.strip() in values:
            raise FaultError(f"fault {text!r}: {name.strip()} is given twice: give it once")
        values[name.strip()] = value.strip()
    return _fault(kind.strip(), values, f"fault {text!r}")


def read_faults(path: Path) -> tuple[Fault, ...]:
    """Faults from a YAML file: a list of words as `parse_fault` takes them, or of `{kind: {name: value}}`.

    Raises:
        FaultError: it holds something else.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise FaultError(f"{path}: {' '.join(str(error).split())}: give a YAML list of faults") from error
    if not isinstance(document, list):
        raise FaultError(f"{path} holds no list: write one fault a line, such as - {_example('agent-gone')}")
    return tuple(_from_yaml(entry, f"{path}, fault {number}") for number, entry in enumerate(document, 1))


def _from_yaml(entry: Any, where: str) -> Fault:
    if isinstance(entry, str):
        try:
            return parse_fault(entry)
        except FaultError as error:
            raise FaultError(f"{where}: {error}") from None
    if not isinstance(entry, dict) or len(entry) != 1:
        raise FaultError(f"{where} is {entry!r}: write {_example('agent-gone')}")
    ((kind, values),) = entry.items()
    if not isinstance(values, dict):
        raise FaultError(f"{where}: {kind} holds {values!r}: give a mapping of its fields")
    return _fault(str(kind), {str(name): str(value) for name, value in values.items()}, where)


def _fault(kind: str, values: Mapping[str, str], where: str) -> Fault:
    made = FAULTS.get(kind)
    if made is None:
        raise FaultError(f"{where}: {kind!r} is no fault: did you mean {_nearest(kind, list(FAULTS))!r}?")
    fields = {_word(field.name): field for field in dataclasses.fields(made)}
    hints = get_type_hints(made)
    given: dict[str, Any] = {}
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            raise FaultError(f"{where}: {kind} has no {name!r}: did you mean {_nearest(name, list(fields))!r}?")
        given[field.name] = _value(hints[field.name], value, f"{where}: {name}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and field.name not in given:
            raise FaultError(f"{where}: {name} is missing: write {_example(kind)}")
    return made(**given)


def _value(hint: Any, text: str, where: str) -> Any:
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise FaultError(f"{where} is {text!r}: give {' or '.join(get_args(hint))}")
        return text
    if hint is str:
        return text
    try:
        number = hint(text.replace("_", "?"))
    except ValueError:
        raise FaultError(f"{where} is {text!r}: give a {'whole ' if hint is int else ''}number") from None
    if not 0 <= number < float("inf"):
        raise FaultError(f"{where} is {text}: give 0 or more")
    return number


def _nearest(word: str, known: Sequence[str]) -> str:
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


_VALUES: Final = types.MappingProxyType(
    {"node": "node-0", "at": "60", "for": "30", "gpu": "0", "delay": "5", "watts": "2000"}
)


def _example(kind: str) -> str:
    made = FAULTS.get(kind, AgentGone)
    needed = [_word(field.name) for field in dataclasses.fields(made) if field.default is dataclasses.MISSING]
    return f"{made.KIND}:{','.join(f'{name}={_VALUES[name]}' for name in needed)}"


def text_of(fault: Fault) -> str:
    """The word that `parse_fault` reads as this fault."""
    shown = [
        f"{_word(field.name)}={getattr(fault, field.name)}"
        for field in dataclasses.fields(fault)
        if getattr(fault, field.name) != field.default
    ]
    return f"{fault.KIND}:{','.join(shown)}"
