"""From a pydantic model to the structural schema of a CustomResourceDefinition.

Structural means: every node has a type, no references, no unions (apiextensions.k8s.io, "Specifying a structural
schema"). Whatever is not known here is an error and not passed on, so that nothing reaches the API server by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from flyball_api.common import CEL_RULES, UNIT, cel_rule

JsonObject = dict[str, Any]
Side = Literal["spec", "status"]

ENUM_MAX_LENGTH = 64
"""Of a string that CEL compares with a few words: without a bound, CEL's cost estimate exceeds the budget."""

_TYPES = frozenset({"array", "boolean", "integer", "number", "object", "string"})
_LIST_KEYS = ("x-kubernetes-list-type", "x-kubernetes-list-map-keys")
_KNOWN = frozenset(
    {
        "$ref", "additionalProperties", "const", "default", "description", "discriminator", "enum", "examples",
        "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minimum",
        "properties", "required", "title", "type", CEL_RULES, UNIT, *_LIST_KEYS,
    }
)  # fmt: skip


class CrdError(ValueError):
    """A model cannot be told to the API server; the message names field, reason and mend."""


class _JsonSchema(GenerateJsonSchema):
    """Pydantic's JSON schema, in which an optional field is one that may be absent and not one that may be null."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """The schema of what may be null."""
        return self.generate_inner(schema["schema"])


@dataclass(frozen=True, slots=True)
class Structural:
    """Turns one model's JSON schema into structural schema.

    What users write (`side="spec"`) is checked by CEL instead of the schema's own keywords wherever those would
    answer in words of their own, or with a second line that other rules went unchecked. What only Flyball writes
    (`side="status"`) keeps the keywords, which are cheaper, and gets no defaults.
    """

    definitions: Mapping[str, JsonObject]
    side: Side

    def convert(self, schema: JsonObject, path: str, inside: tuple[str, ...] = ()) -> JsonObject:
        """One node and all below it.

        Args:
            schema: the node in pydantic's JSON schema.
            path: of the node, for errors, as in `spec.slo`.
            inside: names of the definitions that this node is in.

        Raises:
            CrdError: the node is recursive, a union, unbounded, without description or not known here.
        """
        schema, inside = self._inline(schema, path, inside)
        if unknown := schema.keys() - _KNOWN:
            raise CrdError(f"{path} has {sorted(unknown)}, which no structural schema has: model it with plain types")
        kind = schema.get("type")
        if kind not in _TYPES:
            raise CrdError(f"{path} has type {kind!r}: give it one of {sorted(_TYPES)}")
        node: JsonObject = {}
        if description := self._description(schema):
            node["description"] = description
        node["type"] = kind
        if "format" in schema:
            node["format"] = schema["format"]
        rules: list[JsonObject] = []
        if kind == "object":
            node |= self._object(schema, path, inside)
        elif kind == "array":
            node |= self._array(schema, path, inside, rules)
        elif kind == "string":
            node |= self._string(schema, path, rules)
        elif kind != "boolean":
            node |= self._number(schema, rules)
        # Pydantic sorts the keys of extras; a rule reads better before its sentence.
        rules += [{"rule": rule["rule"], **rule} for rule in schema.get(CEL_RULES, [])]
        if rules and self.side == "spec":
            node[CEL_RULES] = rules
        return node

    def _inline(self, schema: JsonObject, path: str, inside: tuple[str, ...]) -> tuple[JsonObject, tuple[str, ...]]:
        if "$ref" not in schema:
            return schema, inside
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        if name in inside:
            raise CrdError(f"{path} holds {name} within {name}: a structural schema cannot recurse, so bound the depth")
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {**self.definitions[name], **beside}, (*inside, name)

    def _description(self, schema: JsonObject) -> str:
        text = " ".join(str(schema.get("description", "")).split())
        if bounds := bounds_in_words(schema):
            text = f"{text.rstrip('.')}. {bounds}."
        return text

    def _object(self, schema: JsonObject, path: str, inside: tuple[str, ...]) -> JsonObject:
        if "additionalProperties" in schema:
            if "maxProperties" not in schema:
                raise CrdError(f"{path} is a map without bound: give max_length")
            values = self.convert(schema["additionalProperties"], f"{path}.*", inside)
            return {"maxProperties": schema["maxProperties"], "additionalProperties": values}
        properties: JsonObject = {}
        for name, child in schema.get("properties", {}).items():
            node = self.convert(child, f"{path}.{name}", inside)
            if "description" not in node:
                raise CrdError(f"{path}.{name} has no description: kubectl explain would be silent, so write one")
            if self.side == "spec":
                node = _with_default(node, child.get("default"))
            properties[name] = node
        required = {"required": schema["required"]} if schema.get("required") else {}
        return {**required, "properties": properties}

    def _array(self, schema: JsonObject, path: str, inside: tuple[str, ...], rules: list[JsonObject]) -> JsonObject:
        if "maxItems" not in schema:
            raise CrdError(f"{path} is a list without bound: give max_length")
        if least := schema.get("minItems"):
            message = f"the list has %s entries: give at least {least}"
            rules.append(cel_rule(f"self.size() >= {least}", message, "self.size()"))
        node: JsonObject = {"maxItems": schema["maxItems"]}
        node["items"] = self.convert(schema["items"], f"{path}[]", inside)
        return node | {key: schema[key] for key in _LIST_KEYS if key in schema}

    def _string(self, schema: JsonObject, path: str, rules: list[JsonObject]) -> JsonObject:
        if words := words_of(schema):
            if self.side == "status":
                return {"enum": words}
            listed = ", ".join(f"'{word}'" for word in words)
            message = f'"%s" is unknown: give {alternatives(words)}'
            rules.append(cel_rule(f"self in [{listed}]", message, "self"))
            return {"maxLength": ENUM_MAX_LENGTH}
        if "maxLength" not in schema:
            raise CrdError(f"{path} is a text without bound: give max_length")
        node: JsonObject = {"maxLength": schema["maxLength"]}
        if least := schema.get("minLength"):
            if self.side == "status":
                return node | {"minLength": least}
            message = f"the text has %s characters: give at least {least}"
            rules.append(cel_rule(f"self.size() >= {least}", message, "self.size()"))
        return node

    def _number(self, schema: JsonObject, rules: list[JsonObject]) -> JsonObject:
        bounds: JsonObject = {key: schema[key] for key in ("minimum", "maximum") if key in schema}
        if self.side == "status" or not bounds:
            return bounds
        literal = float if schema["type"] == "number" else int
        operators = {"minimum": ">=", "maximum": "<="}
        rule = " && ".join(f"self {operators[key]} {literal(bound)}" for key, bound in bounds.items())
        unit = f" {schema[UNIT]}" if UNIT in schema else ""
        beyond, within = _range_in_words(schema)
        rest = f"{unit} is {beyond}: give {within}".replace("%", "%%")
        rules.append(cel_rule(rule, f"%s{rest}", "self"))
        return {}


def _with_default(node: JsonObject, default: Any) -> JsonObject:
    """The node of a spec's field with its default, where that says more than being absent does."""
    if node["type"] == "object":
        # `{}` lets the API server fill in the defaults below; objects without any stay absent.
        if default is None or not any("default" in child for child in node.get("properties", {}).values()):
            return node
        return _described(node, node["description"], {})
    if default in (None, "", []):
        return node
    # kubectl explain prints no defaults.
    return _described(node, f"{node['description']} Default {default}.", default)


def _described(node: JsonObject, description: str, default: Any) -> JsonObject:
    return {"description": description, "type": node["type"], "default": default} | {
        key: value for key, value in node.items() if key != "description"
    }


def words_of(schema: JsonObject) -> list[str]:
    """The words that a string may be; empty when it may be any."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def alternatives(words: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def bounds_in_words(schema: JsonObject) -> str:
    """What a number or word may be, as the last sentence of its description; empty when there is no bound."""
    if words := words_of(schema):
        return f"{'One of' if len(words) > 1 else 'Only'} {', '.join(words)}"
    if "minimum" not in schema and "maximum" not in schema:
        return ""
    within = _range_in_words(schema)[1].removeprefix("a value ")
    return within[0].upper() + within[1:]


def _range_in_words(schema: JsonObject) -> tuple[str, str]:
    """How a number beyond its bounds lies to them, and what is to be given instead."""
    unit = f" {schema[UNIT]}" if UNIT in schema else ""
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is None:
        return f"below {low}{unit}", f"at least {low}{unit}"
    if low is None:
        return f"above {high}{unit}", f"at most {high}{unit}"
    return f"outside {low} to {high}{unit}", f"a value from {low} to {high}{unit}"


def structural_schema(model: type[BaseModel]) -> JsonObject:
    """The structural schema of a custom resource: `spec` and `status` of the model, `metadata` left to the server.

    Raises:
        CrdError: see `Structural.convert`.
    """
    schema = model.model_json_schema(mode="validation", schema_generator=_JsonSchema)
    definitions = schema.get("$defs", {})
    properties: JsonObject = {}
    for side in ("spec", "status"):
        properties[side] = Structural(definitions, side).convert(schema["properties"][side], side)
    return {
        "description": " ".join(str(schema["description"]).split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            # The API server has its own schema for these; the first two it describes in kubectl explain itself.
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **properties,
        },
    }
