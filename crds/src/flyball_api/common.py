"""Shared pieces of the API's models.

Reading is lenient (`extra="ignore"`: a newer field must not crash an older operator); strictness is the CRD's
and `fieldValidation=Strict` on writes. Absent and `None` are the same thing and are never serialised.

A constraint is written once and told twice: bounds of a field through pydantic's `Field`, constraints between fields
as a `Rule`. `flyball_api.crdgen` turns both into CEL, so that the API server refuses what the models refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel, to_snake
from pydantic.config import JsonDict
from pydantic_core import CoreSchema, core_schema

CEL_RULES = "x-kubernetes-validations"
UNIT = "x-flyball-unit"
"""JSON schema keyword of `Unit`; the CRD generator uses it up."""


class ApiModel(BaseModel):
    """Base of every API object: immutable, camelCase on the wire, unknown fields ignored on reading."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")

    def to_json(self) -> dict[str, Any]:
        """The object as it is sent to the API server (camelCase, absent fields left out)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint between the fields of one object.

    Attributes:
        cel: what must hold of `self`, as the API server's CEL sees it (camelCase; `has()` for what may be absent).
        holds: the same for the model.
        message: one sentence with value, bound and mend; `%s` for each of `values`.
        values: for each `%s` the CEL expression and the same for the model. They are put in by CEL's `format`
            because `+` on strings exceeds the API server's cost budget.
    """

    cel: str
    holds: Callable[[Any], bool]
    message: str
    values: tuple[tuple[str, Callable[[Any], object]], ...] = ()

    def sentence(self, model: BaseModel) -> str:
        """What is wrong with this model, which the rule does not hold of."""
        return self.message % tuple(value(model) for _, value in self.values)

    def to_cel(self) -> JsonDict:
        """One entry of `x-kubernetes-validations`."""
        return cel_rule(self.cel, self.message, *(expression for expression, _ in self.values))


def cel_rule(expression: str, message: str, *values: str) -> JsonDict:
    """One entry of `x-kubernetes-validations`; `message` has a `%s` for each CEL expression in `values`."""
    if not values:
        return {"rule": expression, "message": message}
    text = message.replace("\\", "\\\\").replace("'", "\\'")
    return {"rule": expression, "messageExpression": f"'{text}'.format([{', '.join(values)}])"}


def field_value(path: str) -> tuple[str, Callable[[Any], object]]:
    """A value of a `Rule` that is a field: `limits.smClock.max` for CEL and for the model alike."""

    def of(model: Any) -> object:
        value = model
        for part in path.split("."):
            value = getattr(value, to_snake(part))
        return value

    return f"self.{path}", of


def _add_rules(schema: JsonDict, model: type[Any]) -> None:
    schema[CEL_RULES] = [rule.to_cel() for rule in model.RULES]


class RuledModel(ApiModel):
    """A model with constraints between its fields."""

    model_config = ConfigDict(json_schema_extra=_add_rules)

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey(self) -> Self:
        for rule in self.RULES:
            if not rule.holds(self):
                raise ValueError(rule.sentence(self))
        return self


@dataclass(frozen=True, slots=True)
class Unit:
    """Annotation: the unit of a number, for sentences and the reference page."""

    symbol: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Carry the unit to the generator."""
        return {**handler(schema), UNIT: self.symbol}


class ListMap:
    """Annotation: entries of this list are owned and merged one by one, and no two have the same key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Refuse two entries of one key."""
        return core_schema.no_info_after_validator_function(self._unique, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Say so to the API server, which then refuses them too."""
        return {
            **handler(schema),
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": [self._key],
        }

    def _unique(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        _refuse_repeats([getattr(entry, to_snake(self._key)) for entry in entries], self._key)
        return entries


class ListSet:
    """Annotation: a list of scalars without repeats."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Refuse repeats."""
        return core_schema.no_info_after_validator_function(self._unique, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Say so to the API server, which then refuses them too."""
        return {**handler(schema), "x-kubernetes-list-type": "set"}

    def _unique(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        _refuse_repeats(list(entries), "value")
        return entries


def _refuse_repeats(keys: list[Any], what: str) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{what} {key!r} is given twice: give each {what} once")
        seen.add(key)


def crossed(what: str, unit: str) -> Rule:
    """The rule that a range's `min` is at most its `max`."""
    return Rule(
        cel="!has(self.min) || !has(self.max) || self.min <= self.max",
        holds=lambda self: self.min is None or self.max is None or self.min <= self.max,
        message=f"the lowest {what} is %s {unit} and the highest is %s {unit}: give a min that is at most the max",
        values=(field_value("min"), field_value("max")),
    )


Megahertz = Annotated[int, Field(ge=100, le=5000), Unit("MHz")]
"""An SM clock in MHz. What a card supports is narrower; the actuator clamps to the card."""

CapWatts = Annotated[int, Field(ge=50, le=3000), Unit("W")]
"""A power cap of one GPU in watts. What a card supports is narrower; the actuator clamps to the card."""

Watts = Annotated[int, Field(ge=0, le=100_000_000), Unit("W")]
"""A sum of watts over GPUs."""

Name = Annotated[str, Field(min_length=1, max_length=253)]
GpuUuid = Annotated[str, Field(min_length=1, max_length=96)]
Role = Literal["prefill", "decode", "unified"]
"""What a pod does: prefill only, decode only, or both (also: role unknown)."""

ROLES: tuple[Role, ...] = ("prefill", "decode", "unified")


class ClockRange(RuledModel):
    """A range of SM clocks in MHz; min = max locks one clock."""

    RULES = (crossed("SM clock", "MHz"),)

    min: Megahertz | None = Field(default=None, description="Lowest SM clock in MHz; absent: the card's lowest.")
    max: Megahertz | None = Field(default=None, description="Highest SM clock in MHz; absent: the card's highest.")


class CapRange(RuledModel):
    """A range of power caps of one GPU in watts."""

    RULES = (crossed("power cap", "W"),)

    min: CapWatts | None = Field(
        default=None, description="Lowest cap of one GPU in watts; absent: the card's minimum."
    )
    max: CapWatts | None = Field(
        default=None, description="Highest cap of one GPU in watts; absent: the card's default."
    )


class Condition(ApiModel):
    """A condition as in metav1.Condition."""

    type: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="What is stated, in CamelCase.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(min_length=1, max_length=128)] = Field(description="One CamelCase word why.")
    message: Annotated[str, Field(max_length=2048)] = Field(default="", description="A sentence for a person.")
    last_transition_time: Annotated[str, Field(max_length=40)] = Field(
        description="When the status last changed (RFC 3339).", json_schema_extra={"format": "date-time"}
    )
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="The metadata.generation this was judged on."
    )


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16), ListMap("type")]


class ObjectMeta(ApiModel):
    """The part of an object's metadata that Flyball reads."""

    name: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
