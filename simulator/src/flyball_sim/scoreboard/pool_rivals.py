"""Rows of controllers in a cell of a prefill and a decode engine: each engine has a controller of its own."""

from __future__ import annotations

import time

from flyball_agent.controllers.base import GroupController
from flyball_api.common import Role
from flyball_sim.scoreboard.contest import Row
from flyball_sim.scoreboard.pool import Pool, machines
from flyball_sim.scoreboard.rivals import (
    Contender,
    Play,
    fresh,
    limits_of,
    play_of,
    row_of,
    scored_from,
    traffic_before,
)
from flyball_sim.world.pair import run_pair

ECOROUTE = "ecoroute"
"""VoltanaLLM's own choice of decode engines; with one of them it has none."""


def pool_play(pool: Pool, contender: Contender, *, warm: bool, drawn: int | None = None) -> Play:
    """Run a controller on each engine of a cell.

    Args:
        pool: the cell.
        contender: which.
        warm: after half an hour of the same kind of traffic that does not count.
        drawn: number of the parameter draw the engines have; None: the nominal one.
    """
    engine = pool.engine if drawn is None else pool.drawn_engine(drawn)
    before = traffic_before(pool, warm=warm)
    start, requests = scored_from(pool, before)
    pair = machines(engine, pool.seed)

    def controller(role: Role, number: int) -> GroupController:
        del role, number
        return fresh(pool, contender, engine, drawn=drawn)

    run = run_pair(
        pair[:1],
        pair[1:],
        requests,
        controllers=controller,
        limits=limits_of(pool, engine),
        router=ECOROUTE if contender.kind == "VoltanaLLM" else "least-requests",
        end_seconds=start + pool.end_seconds,
        native=contender.native,
        score_seconds=start,
        marks=(start + pool.blocks).tolist(),
        stopwatch=time.process_time,
    )
    return play_of(pool, run, unscored=len(before), preemptions=run.preemptions)


def pool_rival_row(pool: Pool, contender: Contender, *, warm: bool = False) -> Row:
    """A controller's row of a cell, with its energies under the parameter draws where it starts cold."""
    nominal = pool_play(pool, contender, warm=warm)
    draws = 0 if warm else pool.options.draws
    return row_of(nominal, [pool_play(pool, contender, warm=False, drawn=index) for index in range(draws)])
