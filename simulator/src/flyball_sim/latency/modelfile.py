"""Files of models and step times that `flyball-sim calibrate` writes and other commands take as `--models`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from flyball_sim.latency.cards import ModelCard
from flyball_sim.latency.catalogue import Catalogue, shipped_catalogue
from flyball_sim.latency.rows import RowError, RowKey, StepRow, read_rows, write_rows

_KIND = "flyball-sim models 1"
_TYPES: Mapping[str, type] = {"str": str, "int": int, "bool": bool}


class ModelFileError(ValueError):
    """A file of models that cannot be used; the message says where and the mend."""


def write_models(card: ModelCard, rows: Mapping[RowKey, StepRow], remarks: tuple[str, ...]) -> str:
    """The text of a file with one model and its rows."""
    return json.dumps(
        {"kind": _KIND, "models": [asdict(card)], "rows": write_rows(rows, remarks).splitlines()}, indent=1
    )


def _card(entry: Any, place: str) -> ModelCard:
    if not isinstance(entry, dict):
        raise ModelFileError(f"{place} is not an object: write the file with flyball-sim calibrate")
    known: dict[str, type] = {field.name: _TYPES[str(field.type)] for field in fields(ModelCard)}
    for name, value in entry.items():
        if name not in known:
            raise ModelFileError(f"{place}.{name} is unknown: a model has {', '.join(known)}")
        if type(value) is not known[name] or (isinstance(value, int) and value < 0):
            raise ModelFileError(f"{place}.{name} is {value!r}: give a {known[name].__name__}, 0 or more")
    try:
        card = ModelCard(**entry)
    except TypeError as error:
        raise ModelFileError(f"{place} is not whole, {error}: write the file with flyball-sim calibrate") from None
    smallest = min(card.layers, card.hidden, card.heads, card.kv_heads, card.head_dim, card.intermediate)
    if min(smallest, card.vocabulary, card.context_tokens) < 1 or not card.name:
        raise ModelFileError(f"{place} has a size of 0: give the shape of its published configuration")
    return card


def read_models(text: str) -> Catalogue:
    """The models of the package and those of a file's text.

    Raises:
        ModelFileError: it is no such file; the message says where and the mend.
    """
    try:
        held = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelFileError(
            f"line {error.lineno} is not JSON, {error.msg}: write it with flyball-sim calibrate"
        ) from None
    if not isinstance(held, dict) or held.get("kind") != _KIND:
        raise ModelFileError(f"there is no kind {_KIND!r} in it: write it with flyball-sim calibrate")
    models, lines = held.get("models"), held.get("rows")
    if not isinstance(models, list) or not isinstance(lines, list):
        raise ModelFileError("models and rows are not both lists: write it with flyball-sim calibrate")
    cards = [_card(entry, f"models[{index}]") for index, entry in enumerate(models)]
    try:
        rows = read_rows("\n".join(map(str, lines)))
    except RowError as error:
        raise ModelFileError(f"rows: {error}") from None
    shipped = shipped_catalogue()
    catalogue = shipped.with_models({card.name: card for card in cards}, rows)
    for key in rows:
        if key.model not in catalogue.names:
            raise ModelFileError(f"rows are for {key.model!r}, which is not in models: add its shape")
    return catalogue


def read_models_file(path: Path) -> Catalogue:
    """As `read_models`, of a file.

    Raises:
        ModelFileError: it cannot be read or is no such file; the message names it.
    """
    try:
        return read_models(path.read_text("utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read, {error.strerror}") from None
    except (UnicodeDecodeError, ModelFileError) as error:
        raise ModelFileError(f"{path}: {error}") from None
