"""What the API server asks of an object's metadata: types, unknown fields, name, labels and annotations.

Not asked here: ownerReferences, finalizers and managedFields, which no user of a policy writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from flyball_sim.admission.wording import FieldError, invalid, required, too_long

_TEXTS: Final = frozenset({"generateName", "name", "namespace", "resourceVersion", "selfLink", "uid"})
_MAPS: Final = frozenset({"annotations", "labels"})
_OTHERS: Final = frozenset(
    {
        "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generation",
        "managedFields", "ownerReferences",
    }
)  # fmt: skip
_NAME_LENGTH: Final = 253
_LABEL_LENGTH: Final = 63
_ANNOTATIONS_BYTES: Final = 256 * 1024

_DNS_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_DNS_LABEL}(\.{_DNS_LABEL})*"
_LABEL_KEY: Final = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE: Final = f"({_LABEL_KEY})?"
_ENDS: Final = "and must start and end with an alphanumeric character"


class DecodingError(ValueError):
    """Metadata that cannot be decoded at all; the message is the API server's."""


def unknown_metadata(document: Mapping[str, Any]) -> list[str]:
    """Paths of the fields that metadata does not have.

    Raises:
        DecodingError: a field is of another type.
    """
    metadata = document.get("metadata")
    if metadata is None:
        return []
    if not isinstance(metadata, Mapping):
        raise DecodingError(f"json: cannot unmarshal {_json_type(metadata)} into Go value of type v1.ObjectMeta")
    for name in sorted(metadata):
        _decode(name, metadata[name])
    known = _TEXTS | _MAPS | _OTHERS
    return [f"metadata.{name}" for name in sorted(metadata) if name not in known]


def _decode(name: str, value: Any) -> None:
    wanted = "string"
    wrong = value if name in _TEXTS else None
    if name in _MAPS:
        if isinstance(value, Mapping):
            wrong = next((value[key] for key in sorted(value) if not isinstance(value[key], str | None)), None)
        else:
            wanted, wrong = "map[string]string", value
    if wrong is not None and (wanted != "string" or not isinstance(wrong, str)):
        raise DecodingError(
            f"json: cannot unmarshal {_json_type(wrong)} into Go struct field ObjectMeta.{name} of type {wanted}"
        )


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, Mapping):
        return "object"
    return "array" if isinstance(value, list) else "number"


def metadata_errors(document: Mapping[str, Any]) -> list[FieldError]:
    """What is wrong with the metadata, which could be decoded."""
    metadata = document.get("metadata") or {}
    found: list[FieldError] = []
    if prefix := metadata.get("generateName"):
        # What is generated is appended, so a dash at the end is fine.
        found += _each("metadata.generateName", prefix, _name(f"{prefix[:-1]}a" if prefix[-1] == "-" else prefix))
    if name := metadata.get("name"):
        found += _each("metadata.name", name, _name(name))
    else:
        found.append(required("metadata.name", "name or generateName is required"))
    for key, value in (metadata.get("labels") or {}).items():
        found += _each("metadata.labels", key, _label_key(key))
        found += _each("metadata.labels", value or "", _label_value(value or ""))
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        found += _each("metadata.annotations", key, _label_key(key.lower()))
    if sum(len(key.encode()) + len((value or "").encode()) for key, value in annotations.items()) > _ANNOTATIONS_BYTES:
        found.append(too_long("metadata.annotations", _ANNOTATIONS_BYTES))
    return found


def _each(field: str, value: str, sentences: list[str]) -> list[FieldError]:
    return [invalid(field, value, sentence) for sentence in sentences]


def _name(value: str) -> list[str]:
    # In the words of a name; the prefix of a label counts bytes.
    return [sentence.replace(f"{_NAME_LENGTH} bytes", f"{_NAME_LENGTH} characters") for sentence in _subdomain(value)]


def _subdomain(value: str) -> list[str]:
    found = _length(value, _NAME_LENGTH)
    if not re.fullmatch(_SUBDOMAIN, value):
        found.append(
            f"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', {_ENDS}"
            f" (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
        )
    return found


def _length(value: str, most: int) -> list[str]:
    return [f"must be no more than {most} bytes"] if len(value.encode()) > most else []


def _label_key(value: str) -> list[str]:
    *prefixes, name = value.split("/")
    rule = (
        f"must consist of alphanumeric characters, '-', '_' or '.', {_ENDS} (e.g. 'MyName',  or 'my.name',  or"
        f" '123-abc', regex used for validation is '{_LABEL_KEY}')"
    )
    if len(prefixes) > 1:
        return [f"a valid label key {rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"]
    found: list[str] = []
    if prefixes:
        said = _subdomain(prefixes[0]) if prefixes[0] else ["must be non-empty"]
        found += [f"prefix part {sentence}" for sentence in said]
    found += [f"name part {sentence}" for sentence in (_length(name, _LABEL_LENGTH) if name else ["must be non-empty"])]
    if not re.fullmatch(_LABEL_KEY, name):
        found.append(f"name part {rule}")
    return found


def _label_value(value: str) -> list[str]:
    found = _length(value, _LABEL_LENGTH)
    if not re.fullmatch(_LABEL_VALUE, value):
        found.append(
            f"a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', {_ENDS}"
            f" (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '{_LABEL_VALUE}')"
        )
    return found
