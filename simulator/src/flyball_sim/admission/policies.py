"""Would the API server take this EnergyPolicy, and in which words would it refuse it?

The CRD that is asked is the one that is shipped: generated from the same models by `flyball_api.crdgen`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyball_api.crdgen import custom_resource_definition
from flyball_api.energypolicy import EnergyPolicy
from flyball_api.names import API_VERSION
from flyball_sim.admission.document import DocumentError, as_sent, parse_yaml
from flyball_sim.admission.metadata import DecodingError, metadata_errors, unknown_metadata
from flyball_sim.admission.rules import rule_errors
from flyball_sim.admission.schema import (
    Schema,
    list_errors,
    refuse_unknown_keywords,
    schema_errors,
    unknown_fields,
    with_defaults,
)
from flyball_sim.admission.wording import BLOCKING, NO_FIELD, FieldError, required

_NOT_ALL_ASKED = (
    f"{NO_FIELD}: Invalid value: null: some validation rules were not checked because the object was invalid;"
    " correct the existing errors to complete validation"
)


class PolicyError(ValueError):
    """A file that holds no EnergyPolicy the API server would take; the message names the file and each reason."""


def check(document: Mapping[str, Any]) -> list[str]:
    """The sentences with which the API server would refuse to create this EnergyPolicy; empty when it would take it.

    Each is a line as `kubectl apply` prints it: the field, what is wrong with it, and the mend. Their order is that of
    the document; the API server's is another each time.

    Args:
        document: the object as read from YAML or JSON.
    """
    return _judge(document)[0]


def read_policy(path: Path) -> EnergyPolicy:
    """The EnergyPolicy of a YAML file, with the defaults that the API server would fill in.

    Of its metadata only the name is read.

    Raises:
        PolicyError: the file cannot be read or the API server would refuse what it holds.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}: give the file of an EnergyPolicy") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path} is not text in UTF-8 ({error.reason}): save it as such") from error
    except DocumentError as error:
        raise PolicyError(f"{path}: {error}") from error
    if not isinstance(document, Mapping):
        raise PolicyError(f"{path} holds {type(document).__name__} and no object: give one EnergyPolicy")
    sentences, taken = _judge(document)
    if sentences:
        raise PolicyError("\n".join([f"{path} is not an EnergyPolicy that the API server takes:", *sentences]))
    return EnergyPolicy.model_validate({"metadata": {"name": taken["metadata"]["name"]}, "spec": taken["spec"]})


def _judge(document: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What is said against the document, and the document with defaults."""
    try:
        sent: dict[str, Any] = as_sent(document)
        if said := _not_this_kind(sent):
            return [said], {}
        strange = unknown_metadata(sent)
        if said := _nameless(sent):
            return [said], {}
    except (DocumentError, DecodingError) as error:
        return [str(error)], {}
    schema = _schema()
    if strange := strange + unknown_fields(sent, schema):
        return [f'unknown field "{path}"' for path in strange], {}
    filled: dict[str, Any] = with_defaults(sent, schema)
    # The status is a subresource: what a creation says of it is dropped.
    filled.pop("status", None)
    errors = metadata_errors(filled) + _spec_errors(filled, schema["properties"]["spec"])
    sentences = list(dict.fromkeys(error.sentence() for error in errors))
    if any(error.kind in BLOCKING for error in errors):
        return [*sentences, _NOT_ALL_ASKED], {}
    if "spec" in filled:
        errors = rule_errors(filled["spec"], schema["properties"]["spec"], "spec")
        sentences += [error.sentence() for error in errors]
    return list(dict.fromkeys(sentences)), filled


def _spec_errors(document: Mapping[str, Any], schema: Schema) -> list[FieldError]:
    if "spec" not in document:
        return [required("spec")]
    return schema_errors(document["spec"], schema, "spec") + list_errors(document["spec"], schema, "spec")


def _not_this_kind(document: Mapping[str, Any]) -> str | None:
    """What kubectl says where no CRD is there for what the document names."""
    for field in ("kind", "apiVersion"):
        if not document.get(field):
            return f"{field} not set"
        if not isinstance(document[field], str):
            return f"{field} isn't string type"
    if (document["kind"], document["apiVersion"]) == (EnergyPolicy.KIND, API_VERSION):
        return None
    return (
        f'no matches for kind "{document["kind"]}" in version "{document["apiVersion"]}": give kind'
        f" {EnergyPolicy.KIND} and apiVersion {API_VERSION}"
    )


def _nameless(document: Mapping[str, Any]) -> str | None:
    """What kubectl says of a name that the API server is to make up."""
    metadata = document.get("metadata") or {}
    if metadata.get("generateName") and not metadata.get("name"):
        return f"from {metadata['generateName']}: cannot use generate name with apply"
    return None


@functools.cache
def _schema() -> Schema:
    (version,) = custom_resource_definition(EnergyPolicy)["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    refuse_unknown_keywords(schema["properties"]["spec"], "spec")
    return schema
