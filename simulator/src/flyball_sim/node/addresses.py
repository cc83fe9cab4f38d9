"""Loopback addresses of a simulated node and its pods: 127.<index+1>.x.y, all local on Linux."""

from __future__ import annotations

import ipaddress
import socket

MAX_NODE_INDEX = 253
_PER_BLOCK = 250
_POD_ADDRESSES = 250 * _PER_BLOCK


class AddressError(Exception):
    """No address, or a node index out of bounds."""


def hold_network(index: int | None) -> tuple[int, socket.socket]:
    """Make a node's network this process' own for as long as the socket returned stays open.

    The lock is the name of an abstract Unix socket: the kernel frees it with the process, and it has the scope that
    loopback addresses have, the network namespace.

    Args:
        index: Of the node; None for the lowest that is free.

    Raises:
        AddressError: Another node process on this machine has it.
    """
    for candidate in range(MAX_NODE_INDEX + 1) if index is None else [index]:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0flyball-node-network-{candidate}")
        except OSError:
            lock.close()
            continue
        return candidate, lock
    which = "every index" if index is None else f"index {index}"
    raise AddressError(
        f"{which} is in use by another simulated node on this machine: choose another --index, or leave it out"
    )


class AddressPool:
    """Hands out pod addresses 127.<index+1>.<1..250>.<1..250>, each new one after the last.

    An address is not given again before all others were used, so that a client of a pod that has gone does not
    reach its successor. Address block 0 is the node's own: `host_ip` is 127.<index+1>.0.1.
    """

    def __init__(self, node_index: int) -> None:
        if not 0 <= node_index <= MAX_NODE_INDEX:
            raise AddressError(
                f"node index {node_index} is outside 0..{MAX_NODE_INDEX}: 127.<index+1>.x.y is the node's network"
            )
        self._prefix = f"127.{node_index + 1}"
        self._next = 0
        self._taken: set[int] = set()

    @property
    def host_ip(self) -> str:
        """The node's own address."""
        return f"{self._prefix}.0.1"

    def claim(self, address: str) -> bool:
        """Keep an address a pod already has; False if it is not of this pool or is taken."""
        number = self._number(address)
        if number is None or number in self._taken:
            return False
        self._taken.add(number)
        self._next = max(self._next, number + 1)
        return True

    def take(self) -> str:
        """A free address.

        Raises:
            AddressError: All are taken.
        """
        for offset in range(_POD_ADDRESSES):
            number = (self._next + offset) % _POD_ADDRESSES
            if number not in self._taken:
                self._taken.add(number)
                self._next = number + 1
                return f"{self._prefix}.{number // _PER_BLOCK + 1}.{number % _PER_BLOCK + 1}"
        raise AddressError(f"all {_POD_ADDRESSES} pod addresses of {self._prefix}.0.0/16 are taken: delete pods")

    def give_back(self, address: str) -> None:
        """The pod that had the address is gone."""
        number = self._number(address)
        if number is not None:
            self._taken.discard(number)

    def _number(self, address: str) -> int | None:
        try:
            first, second, block, host = ipaddress.IPv4Address(address).packed
        except ValueError:
            return None
        if f"{first}.{second}" != self._prefix or not (1 <= block <= 250 and 1 <= host <= _PER_BLOCK):
            return None
        return (block - 1) * _PER_BLOCK + host - 1
