"""Where an engine finds its GPUs, and the command itself as a process."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flyball_sim.engine.cli import EngineSetupError, configure, limits_for, place
from flyball_sim.engine.models import UnknownEngineError
from flyball_sim.engine.requests import LoadSample
from flyball_sim.gpu.statefile import GpuStateFile, StateFileError
from flyball_sim.gpu.types import GPU_TYPES, UnknownGpuTypeError


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def node(tmp_path: Path, resources: ExitStack) -> GpuStateFile:
    return resources.enter_context(
        GpuStateFile.create(tmp_path / "gpus.state", [GPU_TYPES["H100-SXM5"]] * 3 + [GPU_TYPES["H200-SXM"]], 1, "n0")
    )


def environment(node: GpuStateFile, *indices: int) -> dict[str, str]:
    return {
        "FLYBALL_SIM_GPU_STATE": str(node.path),
        "NVIDIA_VISIBLE_DEVICES": ",".join(node.gpus[index].uuid for index in indices),
    }


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    configure(parser)
    return parser.parse_args(["--model", "llama-3.1-8b", *words])


def test_a_tensor_parallel_group_runs_at_the_clock_of_its_slowest_gpu(node, resources):
    placement = place("llama-3.1-8b", "auto", None, environment(node, 0, 2), resources)
    node.gpus[0].write("sm_mhz", 1980)
    node.gpus[2].write("sm_mhz", 1200)
    node.gpus[1].write("sm_mhz", 345)
    assert placement.model.gpus == 2
    assert placement.gpus.sm_mhz() == 1200


def test_load_is_written_to_every_gpu_of_the_group_and_no_other(node, resources):
    placement = place("llama-3.1-8b", "auto", 2, environment(node, 0, 2), resources)
    placement.gpus.write_load(LoadSample(0.5, 0.25, 0.75))
    for index, expected in ((0, (0.5, 0.25, 0.75)), (1, (0, 0, 0)), (2, (0.5, 0.25, 0.75))):
        gpu = node.gpus[index]
        assert tuple(gpu.read_real(f"load_{name}") for name in ("memory_use", "compute_use", "busy")) == expected
    assert node.gpus[0].read("load_pid") == os.getpid()
    assert abs(node.gpus[0].read("load_stamp_ns") - time.monotonic_ns()) < 1e9


def test_without_a_state_file_the_engine_runs_at_the_highest_clock(resources):
    placement = place("llama-3.1-70b", "H100-SXM5", 4, {}, resources)
    assert placement.gpus.sm_mhz() == 1980
    assert placement.model.gpus == 4


def test_auto_without_a_state_file_is_refused_with_the_mend(resources):
    with pytest.raises(EngineSetupError, match="FLYBALL_SIM_GPU_STATE is not set: name a type"):
        place("llama-3.1-8b", "auto", None, {}, resources)


def test_a_state_file_without_devices_is_refused(node, resources):
    with pytest.raises(EngineSetupError, match=r"NVIDIA_VISIBLE_DEVICES is empty: ask for nvidia\.com/gpu"):
        place("llama-3.1-8b", "auto", None, environment(node), resources)


def test_a_group_of_two_types_is_refused(node, resources):
    with pytest.raises(EngineSetupError, match="types H100-SXM5, H200-SXM: one engine runs on one type"):
        place("llama-3.1-8b", "auto", None, environment(node, 2, 3), resources)


def test_a_type_other_than_the_gpus_given_is_refused(node, resources):
    with pytest.raises(EngineSetupError, match="--gpu-type is H200-SXM, the GPUs given are H100-SXM5: leave it"):
        place("llama-3.1-8b", "H200-SXM", None, environment(node, 0), resources)


def test_a_group_size_other_than_the_gpus_given_is_refused(node, resources):
    with pytest.raises(EngineSetupError, match="--tensor-parallel-size is 4, the engine was given 2 GPUs"):
        place("llama-3.1-8b", "auto", 4, environment(node, 0, 1), resources)


def test_faults_below_keep_their_own_words(node, resources):
    with pytest.raises(UnknownGpuTypeError, match="did you mean 'H100-SXM5'"):
        place("llama-3.1-8b", "h100", None, {}, resources)
    with pytest.raises(UnknownEngineError, match="on 3 x H100-SXM5: give the engine 1, 2"):
        place("llama-3.1-8b", "auto", None, environment(node, 0, 1, 2), resources)
    with pytest.raises(StateFileError, match="has no GPU 'GPU-none'"):
        place("llama-3.1-8b", "auto", None, {**environment(node), "NVIDIA_VISIBLE_DEVICES": "GPU-none"}, resources)


def test_the_context_length_is_the_models_or_what_memory_holds(resources):
    small = place("qwen3-32b", "H100-SXM5", 1, {}, resources).model
    large = place("llama-3.1-8b", "H100-SXM5", 1, {}, resources).model
    assert limits_for(arguments(), small).max_model_len == small.kv_blocks * 16 < 40_960
    assert limits_for(arguments(), large).max_model_len == 131_072


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-model-len", "200000"), "--max-model-len is 200000: give 1 to 131072"),
        (("--max-num-seqs", "0"), "--max-num-seqs is 0: give 1 to 2048"),
        (("--max-num-seqs", "3000"), "--max-num-seqs is 3000: give 1 to 2048"),
        (("--max-num-queued-reqs", "-1"), "--max-num-queued-reqs is -1: give 1 to"),
    ],
)
def test_a_limit_out_of_bounds_is_refused_with_the_bound(words, message, resources):
    model = place("llama-3.1-8b", "H100-SXM5", 1, {}, resources).model
    with pytest.raises(EngineSetupError, match=message):
        limits_for(arguments(*words), model)


def test_a_wrong_command_line_ends_with_a_sentence_and_status_2():
    done = subprocess.run(
        [sys.executable, "-m", "flyball_sim.cli", "engine", "--model", "llama", "--gpu-type", "H100-SXM5"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("flyball-sim engine: model 'llama' is unknown: did you mean 'llama-")
    assert "Traceback" not in done.stderr


def test_the_command_serves_from_the_state_file_and_drains_on_term(node, eventually):
    gpu = node.gpus[1]
    gpu.write("sm_mhz", 1980)
    process = subprocess.Popen(
        [sys.executable, "-m", "flyball_sim.cli", "engine", "--model", "llama-3.1-8b", "--port", "0"],
        env={**os.environ, **environment(node, 1)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        serving = json.loads(process.stdout.readline())
        assert serving["gpus"] == "1 x H100-SXM5"
        url = f"http://{serving['address']}"
        body = {"model": "llama-3.1-8b", "prompt": [1], "max_tokens": 150, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.readline()
            eventually("the load shows", lambda: gpu.read_real("load_busy") > 0.5)
            assert gpu.read("load_pid") == process.pid
            process.send_signal(signal.SIGTERM)
            eventually("it is not ready any more", lambda: _status(f"{url}/health") == 503)
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert process.wait(timeout=30) == 0
        assert json.loads(process.stdout.readlines()[-1])["unfinished_requests"] == 0
        assert gpu.read_real("load_busy") == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
