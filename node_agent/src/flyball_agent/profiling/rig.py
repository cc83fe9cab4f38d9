"""Who measures: an engine on its cards whose clocks, caps and load are ours for the time being."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint
from flyball_agent.profiling.plan import DecodeTask, LoadTask, PrefillTask


class RigError(RuntimeError):
    """The rig cannot go on measuring; the message names what, and the mend. What was measured is kept."""


class Rig(Protocol):
    """Measures one task; whoever made it restores clocks and caps when all is done."""

    def decode(self, task: DecodeTask) -> Iterator[DecodePoint]:
        """A point for each clock of the task, in its order, each as soon as it is measured.

        Raises:
            RigError: it cannot go on.
        """
        ...

    def prefill(self, task: PrefillTask) -> Iterator[PrefillPoint]:
        """The same for prompts alone."""
        ...

    def load(self, task: LoadTask) -> LoadPoint:
        """The point of a closed loop under a cap."""
        ...
