"""From the raw EnergyPolicy to a `Policy`: what cannot be acted on is refused with a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from flyball_api.common import ObjectMeta
from flyball_api.energypolicy import EnergyPolicySpec, EnergyPolicyStatus
from flyball_api.names import FINALIZER
from flyball_operator.state import Policy

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIX: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def accept(raw: Mapping[str, Any], previous: Policy | None) -> Policy:
    """The policy as it is to be acted on.

    Args:
        raw: the object as the API server gave it.
        previous: what this returned for the same name before; its spec stays in force when the new one is refused.
    """
    metadata = ObjectMeta.model_validate(raw["metadata"])
    kept = previous.spec if previous is not None and previous.uid == metadata.uid else None
    spec: EnergyPolicySpec | None
    try:
        spec = EnergyPolicySpec.model_validate(raw.get("spec") or {})
        refusal = next(_selector_faults(spec), "")
    except ValidationError as error:
        spec, refusal = None, _sentence(error)
    return Policy(
        name=metadata.name,
        uid=metadata.uid,
        generation=metadata.generation,
        created=metadata.creation_timestamp,
        spec=kept if refusal else spec,
        refusal=refusal,
        deleting=metadata.deletion_timestamp is not None,
        has_finalizer=FINALIZER in metadata.finalizers,
        status=_status(raw),
    )


def _status(raw: Mapping[str, Any]) -> EnergyPolicyStatus:
    try:
        return EnergyPolicyStatus.model_validate(raw.get("status") or {})
    except ValidationError:
        # Our own words from another version: they are written anew anyway.
        return EnergyPolicyStatus()


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(["spec", *(str(part) for part in first["loc"])])
    if first["type"] == "value_error":
        # Our own rules: the sentence names value, bound and mend already.
        return f"{path}: {first['msg'].removeprefix('Value error, ')}"
    given = first.get("input")
    value = "" if isinstance(given, Mapping | list) else f" (given: {given!r})"
    return f"{path}: {first['msg']}{value}; mend that field, or upgrade the operator if it is newer than it"


def _selector_faults(spec: EnergyPolicySpec) -> Iterator[str]:
    """What CEL does not check: the grammar of labels. A key that cannot exist would quietly select nothing."""
    keys = [("matchLabels", key) for key in spec.selector.match_labels]
    keys += [("matchExpressions", expression.key) for expression in spec.selector.match_expressions]
    if spec.roles is not None:
        keys.append(("roles.labelKey", spec.roles.label_key))
    for where, key in keys:
        prefix, slash, name = key.rpartition("/")
        if not _NAME.fullmatch(name) or (slash and not (_PREFIX.fullmatch(prefix) and len(prefix) <= 253)):
            yield (
                f"{where}: {key!r} cannot be a label key: use at most 63 letters, digits, '-', '_' and '.', "
                "with an optional DNS prefix and '/'"
            )
    values = [("matchLabels", value) for value in spec.selector.match_labels.values()]
    values += [("matchExpressions", value) for entry in spec.selector.match_expressions for value in entry.values]
    for where, value in values:
        if value and not _NAME.fullmatch(value):
            yield f"{where}: {value!r} cannot be a label value: use at most 63 letters, digits, '-', '_' and '.'"
