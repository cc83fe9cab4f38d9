"""Shared pieces of the API's models.

Reading is lenient (`extra="ignore"`: a newer field must not crash an older operator); strictness is the CRD's
and `fieldValidation=Strict` on writes. Absent and `None` are the same thing and are never serialised.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """Base of every API object: immutable, camelCase on the wire, unknown fields ignored on reading."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")

    def to_json(self) -> dict[str, Any]:
        """The object as it is sent to the API server (camelCase, absent fields left out)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rule(expression: str, message: str, *arguments: str) -> dict[str, str]:
    """A CEL rule whose sentence names the value.

    Args:
        expression: CEL that must hold for `self`.
        message: A sentence with `%d`, `%s` or `%f` for each of `arguments`, naming value, bound and mend.
        arguments: CEL expressions put into the sentence. `format` and not string concatenation: `+` on
            unbounded strings exceeds the API server's CEL cost budget.
    """
    if not arguments:
        return {"rule": expression, "message": message}
    text = message.replace("'", "\\'")
    return {"rule": expression, "messageExpression": f"'{text}'.format([{', '.join(arguments)}])"}


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    """`json_schema_extra` that carries CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


def _crossed(what: str, unit: str) -> dict[str, Any]:
    return rules(
        rule(
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            f"the lowest {what} is %d {unit} and the highest is %d {unit}: give a min that is at most the max",
            "self.min",
            "self.max",
        ),
    )


Megahertz = Annotated[int, Field(ge=100, le=5000)]
"""An SM clock in MHz. What a card supports is narrower; the actuator clamps to the card."""

CapWatts = Annotated[int, Field(ge=50, le=3000)]
"""A power cap of one GPU in watts. What a card supports is narrower; the actuator clamps to the card."""

Watts = Annotated[int, Field(ge=0, le=100_000_000)]
"""A sum of watts over GPUs."""

Name = Annotated[str, Field(min_length=1, max_length=253)]
GpuUuid = Annotated[str, Field(min_length=1, max_length=96)]
Role = Literal["prefill", "decode", "unified"]
"""What a pod does: prefill only, decode only, or both (also: role unknown)."""

ROLES: tuple[Role, ...] = ("prefill", "decode", "unified")


class ClockRange(ApiModel):
    """A range of SM clocks in MHz; min = max locks one clock."""

    model_config = ConfigDict(json_schema_extra=_crossed("SM clock", "MHz"))

    min: Megahertz | None = Field(default=None, description="Lowest SM clock in MHz; absent: the card's lowest.")
    max: Megahertz | None = Field(default=None, description="Highest SM clock in MHz; absent: the card's highest.")


class CapRange(ApiModel):
    """A range of power caps of one GPU in watts."""

    model_config = ConfigDict(json_schema_extra=_crossed("power cap", "W"))

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


def _unique_types(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    types = [condition.type for condition in conditions]
    if len(types) != len(set(types)):
        raise ValueError(f"condition types {types} repeat: give each type once")
    return conditions


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
    AfterValidator(_unique_types),
]


def list_map(*keys: str) -> dict[str, Any]:
    """`json_schema_extra` of a list whose entries are owned and merged one by one, by these keys."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def list_set() -> dict[str, Any]:
    """`json_schema_extra` of a list without duplicates."""
    return {"x-kubernetes-list-type": "set"}


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
