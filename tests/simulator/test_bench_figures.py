"""What the bench counts."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from flyball_agent.controllers.base import ControlLimits, Observation
from flyball_agent.scanner import EngineSample
from flyball_sim.bench.figures import core_percent, count_writes, percentile, process_figures
from flyball_sim.bench.rows import Row
from flyball_sim.bench.simulator import TwoLevels, cluster, copies, one_engine
from flyball_sim.load.conversation import generate
from flyball_sim.load.traces import TraceRequest


def event(user: str, verb: str, resource: str, subresource: str | None = None) -> str:
    reference = {"resource": resource} | ({"subresource": subresource} if subresource else {})
    return json.dumps({"user": {"username": user}, "verb": verb, "objectRef": reference})


def test_reads_are_not_writes_and_a_status_is_told_from_its_object() -> None:
    lines = [
        event("operator", "get", "leases"),
        event("operator", "update", "leases"),
        event("operator", "patch", "energypolicies"),
        event("operator", "patch", "energypolicies", "status"),
        event("operator", "patch", "energypolicies", "status"),
    ]
    assert count_writes(lines) == {
        ("operator", "update", "leases"): 1,
        ("operator", "patch", "energypolicies"): 1,
        ("operator", "patch", "energypolicies/status"): 2,
    }


def test_the_line_that_the_server_is_still_writing_is_left_for_later() -> None:
    whole = event("agent", "patch", "nodeenergyplans", "status")
    assert sum(count_writes([whole, whole[:40]]).values()) == 1


def test_the_99th_of_a_hundred_is_the_second_highest_and_of_a_few_the_highest() -> None:
    assert percentile([float(number) for number in range(100)], 99) == 98
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert math.isnan(percentile([], 99))


def test_a_process_whose_name_has_spaces_and_parentheses_is_read_right(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    process = tmp_path / "7"
    process.mkdir()
    (process / "stat").write_text(f"7 (a ) (b) S {' '.join(['0'] * 10)} {ticks} {2 * ticks} 0")
    (process / "status").write_text("Name:\ta ) (b\nVmRSS:\t   2048 kB\n")
    figures = process_figures(7, tmp_path)
    assert figures.cpu_seconds == pytest.approx(3.0)
    assert figures.rss_mebibytes == pytest.approx(2.0)


def test_cpu_is_counted_in_percent_of_one_core() -> None:
    mine = process_figures(os.getpid())
    assert core_percent(mine, mine, 1.0) == 0.0


def test_a_figure_is_held_to_its_bound_and_one_without_is_only_shown() -> None:
    assert Row("an hour", "one engine", 0.3, 0.4, "s").within
    assert not Row("an hour", "one engine", 0.5, 0.4, "s").within
    assert Row("an hour", "one engine", 9.0, None, "s").within


def test_the_stand_in_controller_asks_for_the_high_clock_while_anything_waits() -> None:
    controller = TwoLevels(1200, 1980, 24)
    limits = ControlLimits(345, 1980)

    def clock(waiting: float, running: float) -> tuple[int, int] | None:
        page = EngineSample({"requests_waiting": waiting, "requests_running": running}, {})
        return controller.decide(Observation("unified", (), page), limits, 0.0).setpoint.sm_mhz

    assert clock(waiting=0, running=3) == (1200, 1200)
    assert clock(waiting=2, running=3) == (1980, 1980)
    assert clock(waiting=0, running=30) == (1980, 1980)


def test_copies_of_a_trace_come_in_order_and_between_its_arrivals() -> None:
    trace = [TraceRequest(0.0, 5, 1), TraceRequest(3.0, 7, 2)]
    arrivals = [(request.arrival_seconds, request.prompt_tokens) for request in copies(trace, 3)]
    assert arrivals == [(0.0, 5), (1.0, 5), (2.0, 5), (3.0, 7), (3.0, 7), (3.0, 7)]


def test_a_run_in_virtual_time_counts_its_requests_and_its_own_costs() -> None:
    cost = one_engine(None, seed=1, seconds=30.0)
    assert cost.requests > 30
    assert cost.engine_seconds > 0
    assert cost.controller_seconds > 0
    assert cost.peak_mebibytes > 10


def test_a_cluster_keeps_the_time_of_agents_and_planner_apart() -> None:
    trace = generate(5.0, seed=1)
    controlled = cluster(trace, 1, 2, requests_each=2, policies=1)
    assert controlled.requests == 2 * len(trace)
    assert controlled.controller_seconds > 0
    assert cluster(trace, 1, 2, requests_each=2, policies=0).controller_seconds == 0
