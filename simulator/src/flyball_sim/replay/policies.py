"""The policies of a replay, read from the file that a user would apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyball_api.energypolicy import EnergyPolicy, EnergyPolicySpec
from flyball_sim.admission.document import DocumentError, as_sent, parse_documents

KIND = EnergyPolicy.KIND
Check = Callable[[Mapping[str, Any]], Sequence[str]]


class PolicyFileError(ValueError):
    """A policy file that cannot be replayed; every reason is on a line of its own, each with its mend."""


@dataclass(frozen=True, slots=True)
class ReplayPolicy:
    """One policy of the file: its name, the spec with the API server's defaults filled in, and the text as written."""

    name: str
    spec: EnergyPolicySpec
    document: Mapping[str, Any]


def read(path: Path, check: Check) -> tuple[ReplayPolicy, ...]:
    """Every EnergyPolicy of a YAML file of one or more documents, in the file's order.

    Args:
        path: the file.
        check: the API server's sentences for a document, none when it would take it.

    Raises:
        PolicyFileError: the file cannot be read, is not YAML, holds another kind or a policy that would be refused.
    """
    try:
        documents = parse_documents(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PolicyFileError(f"{path}: {error.strerror}: give a YAML file with an {KIND}") from error
    except UnicodeDecodeError as error:
        raise PolicyFileError(f"{path} is not text in UTF-8: give a YAML file with an {KIND}") from error
    except DocumentError as error:
        raise PolicyFileError(f"{path}: {error}: give a YAML file with an {KIND}") from error
    if not documents:
        raise PolicyFileError(f"{path} is empty: write an {KIND} into it, as `kubectl apply` would take it")
    strangers = [kind for number, document in enumerate(documents, 1) if (kind := _strange(number, document))]
    if strangers:
        raise PolicyFileError(
            f"{path} holds {', '.join(strangers)}: a replay takes {KIND} only, move the rest to a file of its own"
        )
    refused = [line for document in documents for line in _refusal(path, document, check)]
    if refused:
        raise PolicyFileError("\n".join(refused))
    policies = tuple(_policy(document) for document in documents)
    names = [policy.name for policy in policies]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PolicyFileError(f'{path} holds {KIND} "{twice}" twice: the second would replace the first, keep one')
    return policies


def _strange(number: int, document: object) -> str:
    """What the document is, if not an object of our kind."""
    if not isinstance(document, Mapping):
        return f"a {type(document).__name__} as document {number}"
    kind = document.get("kind")
    return "" if kind == KIND else f"a {kind or 'document without a kind'} as document {number}"


def _refusal(path: Path, document: Mapping[str, Any], check: Check) -> list[str]:
    sentences = check(document)
    if not sentences:
        return []
    return [f'{path}: the API server would refuse {KIND} "{_name(document)}":', *(f"  {text}" for text in sentences)]


def _name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return name if isinstance(name, str) else ""


def _policy(document: Mapping[str, Any]) -> ReplayPolicy:
    sent = as_sent(document)
    name = _name(sent)
    parsed = EnergyPolicy.model_validate({"metadata": {"name": name}, "spec": sent["spec"]})
    return ReplayPolicy(name, parsed.spec, sent)
