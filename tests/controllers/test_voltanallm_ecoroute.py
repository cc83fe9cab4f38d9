"""EcoRoute: the brief's vectors, and the routers that use it."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.routing.ecoroute import Instance, fadr, tile_aware
from flyball_sim.gpu.types import gpu_type
from flyball_sim.latency.steps import step_model
from flyball_sim.load.traces import TraceRequest
from flyball_sim.world.routers import EcoRoute, make_router

CLOCKS = (1005, 1095, 1200, 1305, 1410)
MODEL = step_model(gpu_type("A100-SXM4-80GB"), "llama-3.1-8b", 1)
REQUEST = TraceRequest(0.0, 300, 100)


def toy(mhz, running, kv_tokens):
    return (8 + 6 * math.ceil(running / 128) + 4e-5 * kv_tokens) * (0.3 + 0.7 * 1410 / mhz) / 1e3


def toy_fadr(*counts, clocks=CLOCKS):
    instances = [Instance(count, 400 * count, 1410) for count in counts]
    return fadr(instances, 300, clocks_mhz=clocks, seconds=toy, slo_seconds=0.04)


@pytest.mark.parametrize(
    ("counts", "clocks", "chosen"),
    [
        ((100, 20), (1410, 1005), 1),
        ((128, 64), (1410, 1410), 1),
        ((200, 128), (1410, 1410), 0),
        ((256, 128), (1410, 1410), 1),
        ((130, 0), (1410, 1410), 1),
        ((127, 128), (1410, 1410), 0),
        ((300, 200), (1410, 1410), 1),
    ],
)
def test_tile_aware_gives_the_briefs_answers(counts, clocks, chosen):
    assert tile_aware([Instance(count, 0.0, mhz) for count, mhz in zip(counts, clocks, strict=True)]) == chosen


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [((128, 60), 0), ((200, 128), 1), ((250, 250), 0), ((384, 300), 1), ((385, 380), 1), ((512, 100), 1)],
)
def test_fadr_gives_the_briefs_answers(counts, chosen):
    assert toy_fadr(*counts) == chosen


def test_below_a_tile_everywhere_the_slowest_engine_then_the_emptiest_is_taken():
    instances = [Instance(5, 0, 1410), Instance(60, 0, 1005), Instance(50, 0, 1005)]
    assert tile_aware(instances) == 2
    assert fadr(instances, 10, clocks_mhz=CLOCKS, seconds=toy, slo_seconds=0.04) == 2


@given(st.lists(st.integers(0, 700), min_size=1, max_size=6))
def test_an_engine_is_always_chosen_and_the_same_one_again(counts):
    assert toy_fadr(*counts) == toy_fadr(*counts)
    assert 0 <= toy_fadr(*counts) < len(counts)
    assert 0 <= tile_aware([Instance(count, 0, 1000) for count in counts]) < len(counts)


def test_without_an_engine_or_a_clock_there_is_a_sentence():
    with pytest.raises(ValueError, match="no engine to choose from"):
        tile_aware([])
    with pytest.raises(ValueError, match="no clock level"):
        toy_fadr(1, clocks=())


def engine(index, in_flight, mhz=1410.0, role="decode", kv_usage=0.1):
    return SimpleNamespace(
        index=index, in_flight=in_flight, sm_mhz=mhz, role=role, kv_usage=kv_usage, waiting=0, model=MODEL
    )


def joined(router, *engines):
    for each in engines:
        router.join(each)
    return router


def test_the_tile_router_fills_started_tiles():
    router = joined(make_router("ecoroute-tile"), engine(0, 256), engine(1, 130))
    assert router.choose(REQUEST, 0.0).index == 1


def test_the_router_reckons_with_the_cache_an_engine_holds():
    # Past a tile both, alike in number: the one whose clock would not have to rise is taken.
    router = joined(EcoRoute(slo_seconds=0.03), engine(0, 130, kv_usage=0.5), engine(1, 130, kv_usage=0.02))
    assert router.choose(REQUEST, 0.0).index == 1


def test_prefill_engines_are_drawn_evenly_and_the_same_way_again():
    def drawn():
        router = joined(EcoRoute(seed=3), engine(0, 0, role="prefill"), engine(1, 0, role="prefill"))
        return [router.choose(REQUEST, 0.0).index for _ in range(200)]

    assert drawn() == drawn()
    assert 70 < sum(drawn()) < 130


def test_an_engine_that_left_is_not_chosen_and_none_gives_none():
    only = engine(0, 0)
    router = joined(make_router("ecoroute"), only)
    router.leave(only)
    assert router.choose(REQUEST, 0.0) is None
