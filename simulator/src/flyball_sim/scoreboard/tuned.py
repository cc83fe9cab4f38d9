"""The parameters that tuning found, one set for each controller over all cells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

TUNED_FILE: Final = "tuned.json"


def tuned() -> Mapping[str, Any]:
    """What tuning found, by contender."""
    found: Mapping[str, Any] = json.loads(files("flyball_sim.scoreboard").joinpath(TUNED_FILE).read_text())
    return found


def tuned_parameters(contender: str) -> Mapping[str, Any]:
    """Fields that tuning set; none where the controller has not been tuned."""
    parameters: Mapping[str, Any] = tuned().get(contender, {}).get("parameters", {})
    return parameters


def write_tuned(path: Path, contender: str, entry: Mapping[str, Any]) -> None:
    """Put what tuning found of one controller into a file, beside what it says of others."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known[contender] = dict(entry)
    path.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
