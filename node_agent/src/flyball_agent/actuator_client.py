"""The agent's end of the actuator's socket: requests by number, answers as futures."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

from flyball_agent.facts import Report

ANSWER_SECONDS: Final = 5.0
"""The actuator gives up a hanging NVML call after 2 s and says so, so a longer silence is a dead actuator."""
_MAX_ANSWER_BYTES: Final = 1 << 20


class ActuatorLostError(Exception):
    """The actuator is not connected (any more)."""


class ActuatorRefusedError(Exception):
    """The actuator did not do it; `code` is the fault's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ActuatorClient:
    """One connection. Made by `connect`; lost once, lost for good.

    Args:
        reader: of the connection.
        writer: of the connection.
        on_lost: called once, when it is lost.

    Attributes:
        life: random id of this life of the actuator.
        boot_id: the node's boot.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._reader = reader
        self._writer = writer
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Report]] = {}
        self._lost = asyncio.Event()
        self._why = "the connection was closed"
        self._listener = asyncio.create_task(self._listen())
        self.life = ""
        self.boot_id = ""

    @classmethod
    async def connect(cls, socket: Path, session: str | None, on_lost: Callable[[], None]) -> ActuatorClient:
        """Connect and say hello; without a session, connect beside whoever controls and leave that alone.

        Raises:
            ActuatorLostError: nobody listens, or it does not answer.
            ActuatorRefusedError: it does not serve this uid.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=_MAX_ANSWER_BYTES)
        except OSError as error:
            raise ActuatorLostError(f"{socket}: {error.strerror or error}") from error
        client = cls(reader, writer, on_lost)
        try:
            welcome = await (client.ask("status") if session is None else client.ask("hello", session=session))
        except BaseException:
            await client.close()
            raise
        client.life, client.boot_id = welcome["life"], welcome["boot_id"]
        return client

    async def ask(self, operation: str, **fields: Any) -> Report:
        """Send a request and wait for its answer.

        Raises:
            ActuatorLostError: the connection is gone, or there is no answer in time.
            ActuatorRefusedError: the answer is no.
        """
        if self._lost.is_set():
            raise ActuatorLostError(self._why)
        number = next(self._numbers)
        answer: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        line = json.dumps({"op": operation, "id": number, **fields}, separators=(",", ":"))
        self._writer.write(line.encode() + b"\n")
        try:
            body = await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError as error:
            # The locks must not outlive a dialogue that no longer works: closing has the actuator reset them.
            self._lose(f"no answer to {operation} within {ANSWER_SECONDS:.0f} s")
            raise ActuatorLostError(self._why) from error
        finally:
            self._waiting.pop(number, None)
        if not body["ok"]:
            raise ActuatorRefusedError(body["code"], body["error"])
        return body

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._lost.is_set()

    async def wait_lost(self) -> str:
        """Returns why, once the connection is gone."""
        await self._lost.wait()
        return self._why

    async def close(self) -> None:
        """Say goodbye: the actuator resets the locks of a connection that ends."""
        self._lose("closed by the agent")
        self._listener.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listener
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
            self._lose("the actuator closed the connection")
        except (OSError, ValueError) as error:
            self._lose(f"{type(error).__name__}: {error}")

    def _take(self, body: Report) -> None:
        number = body.get("id")
        if number is None:
            # It did not understand us, or does not serve us: nothing on this connection can be relied upon.
            self._lose(f"{body.get('code')}: {body.get('error')}")
            return
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(body)

    def _lose(self, why: str) -> None:
        if not self._lost.is_set():
            self._why = why
            self._lost.set()
            self._writer.close()
            self._on_lost()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ActuatorLostError(self._why))
