"""`flyball profile` against a served engine and the real actuator over the C library: measured, resumed, given back."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from flyball_agent.profiles import Profile

BIN = Path(sys.executable).parent
SMALL = (
    "--clocks=345,1980",
    "--batches=1,4",
    "--caps=350",
    "--load-batches=8",
    "--no-fit",
    "--settle-seconds=0.15",
    "--window-seconds=0.2",
)


def engine_of(node, *, model_len=4096):
    """A served engine on the node's first card; gives its URL."""
    environment = {"FLYBALL_SIM_GPU_STATE": str(node.state.path), "NVIDIA_VISIBLE_DEVICES": node.gpus[0].uuid}
    command = [BIN / "flyball-sim", "engine", "--model=llama-3.1-8b", "--port=0", f"--max-model-len={model_len}"]
    node._start(command, environment)
    for _ in range(1500):
        for line in node.log().splitlines():
            if '"event": "serving"' in line or '"event":"serving"' in line:
                return "http://" + json.loads(line)["address"]
        time.sleep(0.01)
    raise AssertionError(node.log())


def profile(node, url, *arguments):
    command = [
        BIN / "flyball",
        "profile",
        f"--engine={url}",
        f"--gpu={node.gpus[0].uuid}",
        "--name=chat",
        f"--actuator-socket={node.socket}",
        *arguments,
    ]
    return subprocess.Popen(
        [str(part) for part in command], cwd=node.directory, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def caps_and_lock(node):
    line = node.line()
    gpu = line.ask("read")["gpus"][0]
    return gpu["sample"]["cap_watts"], gpu["lock_mhz"]


def until_points(node, count):
    path = node.directory / "chat.points"
    for _ in range(3000):
        if path.exists() and path.read_text().count("\n") > count:
            return
        time.sleep(0.01)
    raise AssertionError("no points came")


def test_a_profile_broken_off_by_term_gives_the_card_back_and_goes_on_later(make_node):
    node = make_node(1)
    node.start_actuator()
    url = engine_of(node)
    first = profile(node, url, *SMALL, "--minutes=5", "--force")
    until_points(node, 3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 130, first.stderr.read()
    first.stderr.close()
    assert caps_and_lock(node) == (700.0, None)
    before = (node.directory / "chat.points").read_text().splitlines()[1:]

    second = profile(node, url, *SMALL, "--minutes=0.05", "--force")
    _, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert f"{len(before)} of them known" in said
    assert caps_and_lock(node) == (700.0, None)
    made = Profile.from_json((node.directory / "chat.json").read_text())
    assert (made.product, made.model, made.gpus, made.kv_blocks > 0) == (
        "NVIDIA H100 80GB HBM3",
        "llama-3.1-8b",
        1,
        True,
    )
    slow, fast = (next(p for p in made.decode if p.sm_mhz == mhz and p.running == 1) for mhz in (345, 1980))
    assert slow.tpot_seconds > fast.tpot_seconds
    assert slow.power_watts < fast.power_watts


def test_an_engine_that_serves_somebody_is_left_alone(make_node):
    node = make_node(1)
    node.start_actuator()
    url = engine_of(node)
    body = {"model": "llama-3.1-8b", "prompt": [1000] * 8, "max_tokens": 3500, "ignore_eos": True}
    asked = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode())

    def wait_for_an_answer():
        with contextlib.suppress(OSError):  # the engine ends before it
            urllib.request.urlopen(asked, timeout=60).close()

    threading.Thread(target=wait_for_an_answer, daemon=True).start()
    started = profile(node, url, *SMALL)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "the engine has 1 requests running or waiting" in said
    assert "--force" in said
    assert caps_and_lock(node) == (700.0, None)
