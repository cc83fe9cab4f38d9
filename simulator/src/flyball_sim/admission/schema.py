"""A structural schema's demands, as the API server makes them of a new object and in its words.

What comes of an object before it is judged: unknown fields are named, nulls taken out, defaults filled in. What it is
judged by: types, required fields, lengths and sizes, and no entry of a set or of a map's key twice. Read off the
schema of the shipped CRD; a keyword that is not known here is an error and not passed over.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flyball_sim.admission.wording import (
    NO_FIELD,
    FieldError,
    duplicate,
    go_json,
    invalid,
    required,
    too_long,
    too_many,
    wrong_type,
)

Schema = Mapping[str, Any]

CEL_RULES: Final = "x-kubernetes-validations"
_LIST_TYPE: Final = "x-kubernetes-list-type"
_LIST_KEYS: Final = "x-kubernetes-list-map-keys"
_KNOWN: Final = frozenset(
    {
        "additionalProperties", "default", "description", "items", "maxItems", "maxLength", "maxProperties",
        "properties", "required", "type", CEL_RULES, _LIST_KEYS, _LIST_TYPE,
    }
)  # fmt: skip
_ROOT_FIELDS: Final = frozenset({"apiVersion", "kind", "metadata"})
_WHOLE_FLOATS: Final = 2**53


class SchemaError(ValueError):
    """A schema with demands that are not known here."""


def refuse_unknown_keywords(schema: Schema, path: str) -> None:
    """Make sure that nothing the API server asks goes unasked here.

    Raises:
        SchemaError: a keyword is not known.
    """
    if unknown := schema.keys() - _KNOWN:
        raise SchemaError(f"{path} has {sorted(unknown)}, which admission does not know: teach schema.py the keyword")
    for name, child in children(schema):
        refuse_unknown_keywords(child, f"{path}.{name}")


def children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Each schema right below this one, with a name for it."""
    yield from schema.get("properties", {}).items()
    for keyword in ("additionalProperties", "items"):
        if keyword in schema:
            yield keyword, schema[keyword]


def unknown_fields(value: Any, schema: Schema | None, path: str = "") -> list[str]:
    """Paths of the fields that the schema does not have, sorted."""
    found: list[str] = []
    if isinstance(value, dict):
        for key, entry in value.items():
            child = f"{path}.{key}" if path else key
            if not path and key in _ROOT_FIELDS:
                continue
            if schema is not None and (below := property_schema(schema, key)) is not None:
                found += unknown_fields(entry, below, child)
            else:
                found.append(child)
    elif isinstance(value, list):
        items = None if schema is None else schema.get("items")
        for index, entry in enumerate(value):
            found += unknown_fields(entry, items, f"{path}[{index}]")
    return sorted(found)


def property_schema(schema: Schema, key: str) -> Schema | None:
    """The schema of an object's field or of a map's value."""
    found: Schema | None = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
    return found


def with_defaults(value: Any, schema: Schema | None) -> Any:
    """A copy of the value without nulls that the schema has no default for, and with its defaults."""
    if schema is None:
        return copy.deepcopy(value)
    if isinstance(value, list):
        return [with_defaults(entry, schema.get("items")) for entry in value]
    if not isinstance(value, dict):
        return value
    filled: dict[str, Any] = {}
    for key, entry in value.items():
        below = property_schema(schema, key)
        if entry is not None or below is None:
            filled[key] = entry
    for key, below in schema.get("properties", {}).items():
        if key not in filled and "default" in below:
            filled[key] = copy.deepcopy(below["default"])
    return {key: with_defaults(entry, property_schema(schema, key)) for key, entry in filled.items()}


def schema_errors(value: Any, schema: Schema, path: str) -> list[FieldError]:
    """Where the value is not of the schema's types, or misses fields, or has too many entries or characters."""
    expected, given = schema["type"], json_type(value)
    if value is None:
        return [wrong_type(path, expected, given)]
    found: list[FieldError] = []
    if not _is_of_type(value, expected):
        found.append(wrong_type(path, expected, given))
    if isinstance(value, str):
        longest = schema.get("maxLength")
        if longest is not None and len(value) > longest:
            found.append(too_long(path, longest))
    elif given == "number" and expected == "integer":
        found.append(invalid(NO_FIELD, "", f"Checked value must be of type integer (default format) in {path}"))
    elif isinstance(value, list):
        found += _list_errors(value, schema, path)
    elif isinstance(value, dict):
        found += _object_errors(value, schema, path)
    return found


def _list_errors(value: list[Any], schema: Schema, path: str) -> list[FieldError]:
    found: list[FieldError] = []
    if "items" in schema:
        for index, entry in enumerate(value):
            found += schema_errors(entry, schema["items"], f"{path}[{index}]")
    most = schema.get("maxItems")
    if most is not None and len(value) > most:
        found.append(too_many(path, len(value), most))
    return found


def _object_errors(value: dict[str, Any], schema: Schema, path: str) -> list[FieldError]:
    found: list[FieldError] = []
    most = schema.get("maxProperties")
    if most is not None and len(value) > most:
        found.append(too_many(path, len(value), most))
    for key, entry in value.items():
        if (below := property_schema(schema, key)) is not None:
            found += schema_errors(entry, below, f"{path}.{key}")
    found += [required(f"{path}.{name}") for name in schema.get("required", ()) if name not in value]
    return found


def _is_of_type(value: Any, expected: str) -> bool:
    given = json_type(value)
    if isinstance(value, float) and expected == "integer":
        return value.is_integer() and abs(value) < _WHOLE_FLOATS
    return given == expected or (given == "integer" and expected == "number")


def json_type(value: Any) -> str:
    """The type of a value, as schemas name it."""
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def list_errors(value: Any, schema: Schema, path: str) -> list[FieldError]:
    """Entries of a set that are there twice, and entries of a map-like list that share a key."""
    found: list[FieldError] = []
    if isinstance(value, dict):
        for key, entry in value.items():
            if key in schema.get("properties", {}):
                found += list_errors(entry, schema["properties"][key], f"{path}.{key}")
            elif "additionalProperties" in schema:
                found += list_errors(entry, schema["additionalProperties"], f"{path}[{key}]")
    elif isinstance(value, list):
        if schema.get(_LIST_TYPE) == "set":
            found += [duplicate(f"{path}[{index}]", value[index]) for index in _repeated(value)]
        elif schema.get(_LIST_TYPE) == "map":
            found += _map_errors(value, schema[_LIST_KEYS][0], path)
        for index, entry in enumerate(value):
            found += list_errors(entry, schema.get("items", {}), f"{path}[{index}]")
    return found


def _map_errors(value: list[Any], key: str, path: str) -> list[FieldError]:
    for index, entry in enumerate(value):
        if entry is not None and not isinstance(entry, dict):
            return [invalid(f"{path}[{index}]", entry, "must be an object for an array of list-type map")]
    keys = [{key: entry[key]} if entry and key in entry else {} for entry in value]
    return [duplicate(f"{path}[{index}]", keys[index]) for index in _repeated(keys)]


def _repeated(values: list[Any]) -> list[int]:
    """Where a value is for the second time; a third is not told."""
    times: dict[str, int] = {}
    found: list[int] = []
    for index, value in enumerate(values):
        # As JSON, in which True is not 1.
        written = go_json(value)
        times[written] = times.get(written, 0) + 1
        if times[written] == 2:
            found.append(index)
    return found
