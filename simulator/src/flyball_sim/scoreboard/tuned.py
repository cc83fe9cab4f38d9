"""The parameters that tuning found, one set for each controller over all cells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

TUNED_FILE: Final = "tuned.json"


def tuned_parameters(contender: str) -> Mapping[str, Any]:
    """Fields that tuning set; none where the controller has not been tuned."""
    text = files("flyball_sim.scoreboard").joinpath(TUNED_FILE).read_text()
    entry: Mapping[str, Any] = json.loads(text).get(contender, {})
    parameters: Mapping[str, Any] = entry.get("parameters", {})
    return parameters
