"""One run of `flyball profile`: opens engine and cards, measures, and gives the cards back whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import aiohttp

from flyball_agent.actuator_client import ActuatorClient, ActuatorLostError, ActuatorRefusedError
from flyball_agent.profiles import DecodePoint, LoadPoint, PrefillPoint, Profile
from flyball_agent.profiling.cards import HeldCards
from flyball_agent.profiling.engine import EngineApi, EngineFacts
from flyball_agent.profiling.live import LiveRig, Pace, why_serving
from flyball_agent.profiling.plan import BATCHES, LOAD_BATCHES, Ground, SweepPlan, make_plan
from flyball_agent.profiling.points import PointsFile
from flyball_agent.profiling.rig import RigError
from flyball_agent.profiling.sweep import Point, run_sweep, with_points


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be profiled, and how.

    Attributes:
        engine_url: of the engine, without path.
        actuator_socket: where the actuator of the engine's node listens.
        uuids: the engine's GPUs.
        name: of the profile.
        points: file of the points.
        budget_seconds: bound of the measuring.
        max_batch: the engine's most sequences at once.
        clocks_mhz: SM clocks to measure at; none: evenly spread ones.
        batches: decode batches.
        caps_watts: caps to measure at; none: evenly spread ones.
        load_batches: batches to measure at under a cap.
        seed: of prompts and lengths.
        force: also an engine that serves.
        pace: of measuring.
    """

    engine_url: str
    actuator_socket: Path
    uuids: tuple[str, ...]
    name: str
    points: Path
    budget_seconds: float
    max_batch: int = 256
    clocks_mhz: tuple[int, ...] = ()
    batches: tuple[int, ...] = BATCHES
    caps_watts: tuple[int, ...] = ()
    load_batches: tuple[int, ...] = LOAD_BATCHES
    seed: int = 0
    force: bool = False
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True)
class Measured:
    """A profile without fits, and how many points of its plan are missing."""

    profile: Profile
    left: int


@dataclass(frozen=True, slots=True)
class _Bench:
    engine: EngineApi
    facts: EngineFacts
    cards: HeldCards
    ground: Ground
    product: str


def measure(
    wish: Wish,
    *,
    clock: Callable[[], float],
    utc_now: Callable[[], datetime],
    tell: Callable[[str], None],
) -> Measured:
    """Profile a live engine; goes on from the points that the file has.

    Args:
        wish: what and how.
        clock: monotonic seconds.
        utc_now: wall clock, aware.
        tell: shows a line of progress.

    Raises:
        RigError: it cannot be measured, or not further; points so far are in the file.
        PointsError: the file's points are of something else.
        ValueError: a clock or a cap of the wish is not the cards'.
    """
    with asyncio.Runner() as runner, _opened(runner, wish, clock) as bench:
        plan = make_plan(
            bench.ground,
            clocks=wish.clocks_mhz,
            batches=wish.batches,
            caps=wish.caps_watts,
            load_batches=wish.load_batches,
            seed=wish.seed,
        )
        kept = PointsFile(wish.points, _subject(bench))
        known = kept.load()
        if not wish.force and (why := runner.run(why_serving(bench.engine))):
            raise RigError(
                f"{why}: measuring would slow down whoever waits for it; take it out of its Service, or give --force"
            )
        runner.run(bench.cards.hold())
        rig = LiveRig(runner, bench.engine, bench.cards, bench.ground, clock=clock, pace=wish.pace)
        began, names = clock(), plan.names()
        done = sum(name in known for name in names)
        tell(f"{len(names)} points to measure, {done} of them known; at most {wish.budget_seconds / 60:.0f} min")
        shown = _Progress(plan, done, tell, lambda: clock() - began)

        def keep(name: str, point: Point) -> None:
            kept.keep(name, point)
            shown.one(name, point)

        end = run_sweep(plan, rig, measured=known, keep=keep, time_left=lambda: clock() - began < wish.budget_seconds)
        facts = bench.facts
        empty = Profile(
            name=wish.name,
            product=bench.product,
            model=facts.model,
            gpus=bench.ground.gpus,
            engine_version=facts.version,
            created=utc_now().isoformat(timespec="seconds"),
            kv_blocks=facts.kv_blocks,
            block_tokens=facts.block_tokens,
            max_batch_limit=wish.max_batch,
        )
        return Measured(with_points(empty, plan, end.points), end.left)


@contextmanager
def _opened(runner: asyncio.Runner, wish: Wish, clock: Callable[[], float]) -> Iterator[_Bench]:
    session = runner.run(_session())
    try:
        engine = EngineApi(session, wish.engine_url, seed=wish.seed, clock=clock)
        facts = runner.run(engine.facts())
        cards = runner.run(_cards(wish))
        try:
            held = runner.run(cards.facts())
            ground = Ground(
                clocks_mhz=held.clocks_mhz,
                cap_min_watts=held.cap_min_watts,
                cap_max_watts=held.cap_max_watts,
                gpus=len(wish.uuids),
                max_batch_limit=wish.max_batch,
                max_model_len=facts.max_model_len or 4096,
                kv_tokens=facts.kv_blocks * facts.block_tokens,
            )
            yield _Bench(engine, facts, cards, ground, held.product)
        finally:
            runner.run(cards.give_back())
    finally:
        runner.run(session.close())


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _cards(wish: Wish) -> HeldCards:
    try:
        client = await ActuatorClient.connect(wish.actuator_socket, None, lambda: None)
    except (ActuatorLostError, ActuatorRefusedError) as error:
        raise RigError(f"the actuator cannot be reached ({error}): run this in the agent's container") from error
    return HeldCards(client, wish.uuids)


def _subject(bench: _Bench) -> dict[str, str | int]:
    return {
        "product": bench.product,
        "gpus": bench.ground.gpus,
        "model": bench.facts.model,
        "engine": bench.facts.version,
    }


class _Progress:
    """One line for each point."""

    def __init__(self, plan: SweepPlan, done: int, tell: Callable[[str], None], spent: Callable[[], float]) -> None:
        self._all, self._done = len(plan.names()), done
        self._tell, self._spent = tell, spent

    def one(self, name: str, point: Point) -> None:
        self._done += 1
        self._tell(f"[{self._done}/{self._all}, {self._spent() / 60:.1f} min] {name}: {described(point)}")


def described(point: Point) -> str:
    """A point in a few words."""
    if isinstance(point, DecodePoint):
        return f"{point.tpot_seconds * 1e3:.2f} ms per token, {point.power_watts:.0f} W a card"
    if isinstance(point, PrefillPoint):
        return f"{point.seconds * 1e3:.1f} ms, {point.power_watts:.0f} W a card"
    return _load_in_words(point)


def _load_in_words(point: LoadPoint) -> str:
    return (
        f"{point.tokens_per_second:.0f} tokens/s, p95 {point.tpot_p95_seconds * 1e3:.1f} ms per token,"
        f" {point.power_watts:.0f} W a card"
    )


def whole_numbers(text: str) -> tuple[int, ...]:
    """A list such as `900,1200`; ValueError where it is none."""
    return tuple(int(part) for part in text.split(",") if part)


def uuids_of(given: Sequence[str]) -> tuple[str, ...]:
    """UUIDs given one by one or with commas."""
    return tuple(uuid for part in given for uuid in part.split(",") if uuid)
