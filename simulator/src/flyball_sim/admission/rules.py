"""The CEL rules of a schema, asked as the API server asks them: of every part that has some, and all of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from cel_expr_python import cel

from flyball_sim.admission.schema import CEL_RULES, Schema, SchemaError, property_schema
from flyball_sim.admission.wording import OMITTED, FieldError, go_float, invalid

_LONGEST_MESSAGE_BYTES: Final = 5 * 1024


def rule_errors(value: Any, schema: Schema, path: str) -> list[FieldError]:
    """Each rule that does not hold, of a value that is of the schema's types.

    A rule that compares with an older object (`oldSelf`) is not asked: this object is new.

    Raises:
        SchemaError: a rule cannot be evaluated.
    """
    found: list[FieldError] = []
    rules = [rule for rule in schema.get(CEL_RULES, ()) if "oldSelf" not in rule["rule"]]
    itself = _cel(value, schema) if rules else None
    for rule in rules:
        holds = _evaluate(rule["rule"], itself)
        if not isinstance(holds, bool):
            raise SchemaError(f"{path} cannot be asked `{rule['rule']}`: {holds}")
        if not holds:
            shown = OMITTED if isinstance(value, dict | list) else value
            found.append(invalid(path, shown, _message(rule, itself)))
    if isinstance(value, list):
        for index, entry in enumerate(value):
            found += rule_errors(entry, schema["items"], f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, entry in value.items():
            if key in schema.get("properties", {}):
                found += rule_errors(entry, schema["properties"][key], f"{path}.{key}")
            else:
                found += rule_errors(entry, schema["additionalProperties"], f"{path}[{key}]")
    return found


def _message(rule: Mapping[str, str], itself: Any) -> str:
    if "messageExpression" in rule:
        text = str(_evaluate(rule["messageExpression"], itself)).strip()
        # A value with a line break in it would break the sentence: the API server then names the rule instead.
        if text and "\n" not in text and len(text.encode()) <= _LONGEST_MESSAGE_BYTES:
            return text
    return rule["message"].strip() if "message" in rule else f"failed rule: {rule['rule'].strip()}"


def _cel(value: Any, schema: Schema) -> Any:
    """A value as CEL takes it from Python; the schema decides on numbers, for 99 of a `number` is a double."""
    if isinstance(value, dict):
        return {key: _cel(entry, property_schema(schema, key) or {}) for key, entry in value.items()}
    if isinstance(value, list):
        return [_cel(entry, schema["items"]) for entry in value]
    return float(value) if schema.get("type") == "number" else value


def _evaluate(expression: str, itself: Any) -> Any:
    return _compiled(expression).eval(data={"self": itself}).value()


@functools.cache
def _compiled(expression: str) -> cel.Expression:
    return _environment().compile(expression)


@functools.cache
def _environment() -> cel.Env:
    # The library's own `format` prints 6 digits of a double where the API server's prints as many as it takes.
    overload = cel.Overload(
        id="string_format_list",
        return_type=cel.Type.STRING,
        parameters=[cel.Type.STRING, cel.Type.LIST],
        is_member=True,
        impl=_format,
    )
    return cel.NewEnv(variables={"self": cel.Type.DYN}, functions=[cel.FunctionDecl("format", [overload])])


def _format(pattern: str, values: list[Any]) -> str:
    """CEL's string extension `format`, for the one verb that rules use."""
    return pattern % tuple(go_float(value) if isinstance(value, float) else value for value in values)
