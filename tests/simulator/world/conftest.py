"""Makes `world_parts` importable: in importlib mode pytest puts no test directory on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
