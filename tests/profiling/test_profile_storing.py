"""Where a profile goes, and what the command says of wrong lines."""

import json
from dataclasses import replace

import pytest

from flyball_agent.cli import main
from flyball_agent.profiles import DecodePoint, Profile
from flyball_agent.profiling.storing import write_config_map, write_file
from flyball_api.kube import NotFoundError

PROFILE = Profile("chat", "H100", "llama", 1, "0.33.0", "2026-01-02", decode=(DecodePoint(1410, 8, 4096, 0.01, 300.0),))


class Kube:
    def __init__(self, there):
        self.there, self.calls = there, []

    async def merge_patch(self, resource, name, patch, namespace):
        if not self.there:
            raise NotFoundError(404, "NotFound", "no such ConfigMap")
        self.calls.append(("patch", resource.plural, name, namespace, patch))

    async def create(self, resource, body):
        self.calls.append(("create", resource.plural, body["metadata"]["name"], body["metadata"]["namespace"], body))


@pytest.mark.parametrize(("there", "call"), [(True, "patch"), (False, "create")])
async def test_a_profile_is_one_key_of_the_config_map_and_leaves_the_others(there, call):
    kube = Kube(there)
    await write_config_map(PROFILE, kube, "flyball-system")
    (made,) = kube.calls
    assert made[:4] == (call, "configmaps", "flyball-profiles", "flyball-system")
    assert list(made[4]["data"]) == ["chat.json"]
    assert Profile.from_json(made[4]["data"]["chat.json"]) == PROFILE


async def test_a_profile_too_large_for_a_config_map_is_refused_before_it_is_sent():
    kube = Kube(there=True)
    large = replace(PROFILE, decode=PROFILE.decode * 60_000)
    with pytest.raises(ValueError, match="a ConfigMap at most 900000"):
        await write_config_map(large, kube, "flyball-system")
    assert kube.calls == []


def test_fitting_anew_writes_the_profile_and_names_who_has_no_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flyball_agent.cli.FITS", ["PALS"])
    monkeypatch.setattr("flyball_agent.profiling.fits.FITS", {"PALS": "flyball_agent.controllers.nothing.fit"})
    write_file(PROFILE, tmp_path / "chat.json")
    assert main(["fit", str(tmp_path / "chat.json"), "--output", "-"]) == 0
    said = capsys.readouterr()
    assert Profile.from_json(said.out) == PROFILE
    assert "controller PALS has no fit here" in said.err


def test_a_file_that_is_no_profile_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "x.json").write_text(json.dumps({"kind": "other"}))
    assert main(["fit", str(tmp_path / "x.json")]) == 1
    assert "give a file that `flyball profile` wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "named"),
    [("--name=../x", "cannot be a key of a ConfigMap"), ("--clocks=fast", "no list of whole numbers")],
)
def test_a_wrong_line_is_refused_before_anything_is_touched(line, named, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["profile", "--engine=http://127.0.0.1:1", "--gpu=GPU-1", "--name=chat", line])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_an_engine_that_is_not_there_is_named(tmp_path, capsys):
    points = tmp_path / "points"
    line = ["profile", "--engine=http://127.0.0.1:1", "--gpu=GPU-1", "--name=chat", f"--points={points}"]
    assert main(line) == 1
    assert "engine http://127.0.0.1:1/v1/models cannot be read" in capsys.readouterr().err
    assert not points.exists()
