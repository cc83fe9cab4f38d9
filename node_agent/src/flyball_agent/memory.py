"""What controllers learnt, kept over a restart of the agent: what is written, and what of it is believed. Pure.

An entry is taken up by the controller of the same policy, parameters, role and cards, on the same boot (controllers
count in monotonic seconds, which begin anew with a boot). Everything else is left, and said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flyball_agent.controllers.base import Setup

VERSION: Final = 1
MAX_ENTRY_BYTES: Final = 1 << 20
MAX_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Remembered:
    """One controller's state.

    Attributes:
        key: digest of what it drives and how (`digest` of a group's key).
        setup: digest of what it was told that it drives.
        policy: its policy's name, for sentences.
        kind: its type.
        state: what it gave.
    """

    key: str
    setup: str
    policy: str
    kind: str
    state: Mapping[str, Any]


def digest(*parts: Any) -> str:
    """The same for the same values in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def setup_digest(setup: Setup) -> str:
    """Of what a controller's state is about: the cards, and which profile it had."""
    profile = setup.profile
    made = None if profile is None else (profile.name, profile.created, profile.model)
    caps = (setup.cap_min_watts, setup.cap_max_watts)
    return digest(setup.product, setup.gpus, setup.clocks_mhz, caps, setup.seed, made)


def write(entries: Iterable[Remembered], boot_id: str) -> tuple[bytes, list[str]]:
    """The file's content, and sentences on what is not in it.

    Args:
        entries: what is to be kept.
        boot_id: of the node.
    """
    kept: list[str] = []
    notes = []
    size = 256
    for entry in entries:
        body = {"key": entry.key, "setup": entry.setup, "policy": entry.policy, "type": entry.kind}
        try:
            text = json.dumps({**body, "state": entry.state}, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            notes.append(f"the state of {entry.kind} for policy {entry.policy} is no JSON ({error}): not kept")
            continue
        if len(text) > MAX_ENTRY_BYTES or size + len(text) > MAX_BYTES:
            notes.append(
                f"the state of {entry.kind} for policy {entry.policy} has {len(text)} bytes: at most {MAX_ENTRY_BYTES}"
                f" of one controller and {MAX_BYTES} of all are kept"
            )
            continue
        size += len(text) + 1
        kept.append(text)
    head = json.dumps({"kind": "flyball-controllers", "version": VERSION, "boot": boot_id})
    return (head[:-1] + ', "controllers": [' + ",\n".join(kept) + "]}\n").encode(), notes


def read(content: bytes, boot_id: str) -> tuple[dict[str, Remembered], str]:
    """What a file says, by key, and a sentence on why it is not believed; empty when it is.

    Args:
        content: of the file.
        boot_id: of the node now.
    """
    if len(content) > MAX_BYTES:
        return {}, f"the kept states have {len(content)} bytes, and at most {MAX_BYTES} are read"
    try:
        said = json.loads(content)
        if said["kind"] != "flyball-controllers" or said["version"] != VERSION:
            return {}, f"the kept states are of version {said['version']!r}, and this agent reads {VERSION}"
        if said["boot"] != boot_id:
            return {}, "the kept states are of another boot of this node"
        if not isinstance(said["controllers"], list):
            return {}, "the kept states are no list"
        found = [_entry(each) for each in said["controllers"]]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        return {}, f"the kept states cannot be read ({type(error).__name__}: {str(error)[:100]})"
    return {entry.key: entry for entry in found}, ""


def _entry(said: Any) -> Remembered:
    texts = [said[name] for name in ("key", "setup", "policy", "type")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(said["state"], dict):
        raise TypeError("an entry is not what an agent writes")
    key, setup, policy, kind = texts
    return Remembered(key, setup, policy, kind, said["state"])
