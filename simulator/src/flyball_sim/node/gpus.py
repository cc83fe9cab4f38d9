"""Which container holds which GPUs. Deterministic (lowest index first); nothing is remembered across a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class GpuShortageError(Exception):
    """A container asks for more GPUs than are free."""


class GpuAllocator:
    """Hands whole GPUs to containers.

    Args:
        uuids: The node's GPUs in index order.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        self.uuids = tuple(uuids)
        self._held: dict[str, dict[str, tuple[str, ...]]] = {}

    def free(self) -> tuple[str, ...]:
        """The GPUs nobody holds, in index order."""
        taken = {uuid for containers in self._held.values() for held in containers.values() for uuid in held}
        return tuple(uuid for uuid in self.uuids if uuid not in taken)

    def allocate(self, pod_uid: str, wanted: Mapping[str, int]) -> Mapping[str, tuple[str, ...]]:
        """GPUs for each container of a pod, all or none.

        Args:
            pod_uid: The pod.
            wanted: Number of GPUs by container name.

        Returns:
            UUIDs by container name, for the containers that asked for any; the same again for the same pod.

        Raises:
            GpuShortageError: Fewer are free than the pod asks for.
        """
        if pod_uid in self._held:
            return self._held[pod_uid]
        free = list(self.free())
        total = sum(wanted.values())
        if total > len(free):
            raise GpuShortageError(
                f"the pod asks for {total} GPUs and {len(free)} of {len(self.uuids)} are free on this node: "
                "wait until another pod ends, or ask for fewer"
            )
        grant: dict[str, tuple[str, ...]] = {}
        for container, count in wanted.items():
            if count > 0:
                grant[container] = tuple(free[:count])
                del free[:count]
        self._held[pod_uid] = grant
        return grant

    def held_by(self, pod_uid: str) -> Mapping[str, tuple[str, ...]]:
        """What a pod holds, by container name."""
        return self._held.get(pod_uid, {})

    def release(self, pod_uid: str) -> None:
        """The pod's containers have ended."""
        self._held.pop(pod_uid, None)
