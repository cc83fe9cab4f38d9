"""The agent as a process that ends and starts again: what its controllers learnt goes on, and its pages say why."""

import json

SLO = {"timeToFirstToken": {"thresholdMilliseconds": 500}, "interTokenLatency": {"thresholdMilliseconds": 50}}


def test_a_controller_goes_on_after_a_restart_of_the_agent(node, eventually, tmp_path):
    node.add_engine()
    node.start_actuator()
    spec = node.spec(slo=SLO)
    spec["policies"][0]["controller"] = {"type": "Flyball"}
    node.api.put_plan(spec)
    path = tmp_path / "states" / "controllers.json"
    path.parent.mkdir()

    def start():
        return node.start_agent(f"--state-file={path}", f"--profiles-dir={tmp_path}")

    def decisions():
        status, page = node.get("/explain")
        gpus = json.loads(page)["gpus"] if status == 200 else []
        return gpus[0]["decisions"] if gpus else 0

    first = start()
    eventually("it decides", lambda: decisions() >= 3)
    assert json.loads(node.get("/explain")[1])["gpus"][0]["because"]
    first.terminate()
    assert first.wait(10) == 0
    (kept,) = json.loads(path.read_text())["controllers"]
    assert (kept["policy"], kept["type"]) == ("p0", "Flyball")
    second = start()
    eventually("it goes on", lambda: "goes on from its kept state" in node.log())
    second.terminate()
    assert second.wait(10) == 0
    path.write_text("{")
    start()
    eventually("it says that it starts afresh", lambda: "kept states discarded" in node.log())
    eventually("and controls", lambda: decisions() >= 1)
