"""Volumes are real directories with the contents, modes and owners the kubelet would give them."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flyball_sim.node.podspec import PodSpecError
from flyball_sim.node.volumes import PodVolumes, Token, referenced_objects, shared_user

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


class Source:
    """Objects from a dictionary, and tokens that are numbered and live an hour."""

    def __init__(self, clock):
        self.clock = clock
        self.config_maps = {"settings": {"data": {"a": "1", "b": "2"}}}
        self.secrets = {"keys": {"data": {"k": base64.b64encode(b"\x00\xff").decode()}}}
        self.tokens = []

    async def config_map(self, _namespace, name):
        return self.config_maps.get(name)

    async def secret(self, _namespace, name):
        return self.secrets.get(name)

    async def token(self, _pod, audience, seconds):
        self.tokens.append((audience, seconds))
        return Token(f"token-{len(self.tokens)}", self.clock.now() + timedelta(seconds=seconds))


class SteppedClock:
    def __init__(self):
        self.moment = START

    def now(self):
        return self.moment


@pytest.fixture
def clock():
    return SteppedClock()


@pytest.fixture
def source(clock):
    return Source(clock)


@pytest.fixture
def make(tmp_path, source, clock):
    def volumes(*entries, container=None, security=None, change_owner=False, labels=None):
        pod = {
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": labels or {}},
            "spec": {
                "volumes": list(entries),
                "containers": [container or {"name": "c"}],
                "securityContext": security or {},
            },
        }
        return PodVolumes(pod, tmp_path / "v", tmp_path / "rootfs", source, clock.now, change_owner=change_owner)

    return volumes


def is_directory(path):
    return Path(path).is_dir()


def mode_of(path):
    return path.stat().st_mode & 0o777


ACCESS = {
    "name": "access",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {"configMap": {"name": "settings", "items": [{"key": "a", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]
    },
}


async def test_a_projected_volume_has_token_certificate_and_namespace(make):
    paths = await make(ACCESS).prepare("ip", "host")
    found = {name: (Path(paths["access"]) / name).read_text() for name in ("token", "ca.crt", "namespace")}
    assert found == {"token": "token-1", "ca.crt": "1", "namespace": "ns"}


async def test_a_token_is_renewed_when_four_fifths_of_its_life_are_over(make, source, clock):
    volumes = make(ACCESS)
    paths = await volumes.prepare("ip", "host")
    clock.moment += timedelta(seconds=2879)
    await volumes.prepare("ip", "host")
    assert volumes.refresh_at() == START + timedelta(seconds=2880)
    assert len(source.tokens) == 1
    clock.moment += timedelta(seconds=1)
    await volumes.prepare("ip", "host")
    assert (Path(paths["access"]) / "token").read_text() == "token-2"


async def test_a_changed_config_map_reaches_its_volume(make, source):
    volumes = make({"name": "s", "configMap": {"name": "settings"}})
    paths = await volumes.prepare("ip", "host")
    source.config_maps["settings"] = {"data": {"a": "new"}}
    await volumes.prepare("ip", "host")
    assert (Path(paths["s"]) / "a").read_text() == "new"
    assert not (Path(paths["s"]) / "b").exists()


async def test_volumes_without_changing_contents_need_no_refresh(make):
    volumes = make({"name": "e", "emptyDir": {}})
    await volumes.prepare("ip", "host")
    assert volumes.refresh_at() is None


async def test_a_secret_is_decoded_and_keeps_its_mode(make):
    paths = await make({"name": "k", "secret": {"secretName": "keys", "defaultMode": 0o400}}).prepare("i", "h")
    file = Path(paths["k"]) / "k"
    assert file.read_bytes() == b"\x00\xff"
    assert file.stat().st_mode & 0o777 == 0o400


async def test_labels_are_told_by_the_downward_api(make):
    item = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    paths = await make({"name": "d", "downwardAPI": {"items": [item]}}, labels={"a": "1"}).prepare("i", "h")
    assert (Path(paths["d"]) / "labels").read_text() == 'a="1"'


async def test_a_missing_config_map_is_named_unless_it_is_optional(make):
    with pytest.raises(PodSpecError, match='volume "s": configMap "ns/no" does not exist'):
        await make({"name": "s", "configMap": {"name": "no"}}).prepare("i", "h")
    paths = await make({"name": "s", "configMap": {"name": "no", "optional": True}}).prepare("i", "h")
    assert is_directory(paths["s"])


async def test_host_paths_are_below_the_nodes_own_root(make, tmp_path):
    wanted = {"name": "state", "hostPath": {"path": "/var/lib/flyball", "type": "DirectoryOrCreate"}}
    paths = await make(wanted).prepare("i", "h")
    assert paths["state"] == str(tmp_path / "rootfs/var/lib/flyball")
    assert is_directory(paths["state"])


async def test_a_host_path_that_must_exist_is_waited_for(make, tmp_path):
    volumes = make({"name": "s", "hostPath": {"path": "/run/x", "type": "Directory"}})
    with pytest.raises(PodSpecError, match="hostPath /run/x is not a Directory"):
        await volumes.prepare("i", "h")
    (tmp_path / "rootfs/run/x").mkdir(parents=True)
    await volumes.prepare("i", "h")


async def test_an_unsupported_volume_is_refused_with_what_is_supported(make):
    with pytest.raises(PodSpecError, match=r"persistentVolumeClaim is not supported .* use one of emptyDir"):
        await make({"name": "x", "persistentVolumeClaim": {"claimName": "c"}}).prepare("i", "h")


async def test_an_empty_dir_keeps_its_contents_over_a_refresh(make):
    volumes = make({"name": "e", "emptyDir": {}}, ACCESS)
    paths = await volumes.prepare("i", "h")
    (Path(paths["e"]) / "x").write_text("kept")
    await volumes.prepare("i", "h")
    assert (Path(paths["e"]) / "x").read_text() == "kept"
    assert mode_of(Path(paths["e"])) == 0o777


@pytest.mark.parametrize(
    ("security", "owner", "group", "mode"),
    [({"runAsUser": 65532}, 65532, 0, 0o600), ({"runAsUser": 65532, "fsGroup": 7}, 0, 7, 0o640), ({}, 0, 0, 0o644)],
)
async def test_a_token_is_readable_by_the_pods_user(make, monkeypatch, *, security, owner, group, mode):
    owners = {}

    def chown(path, user, to_group):
        owners[Path(path).name] = (max(user, 0), max(to_group, 0))

    # Only root may give files away; what is asked of the kernel is what counts here.
    monkeypatch.setattr(os, "chown", chown)
    paths = await make(ACCESS, security=security, change_owner=True).prepare("i", "h")
    assert owners.get("token", (0, 0)) == (owner, group)
    assert (Path(paths["access"]) / "token").stat().st_mode & 0o777 == mode


def test_containers_of_two_users_share_none():
    def pod(*users):
        return {"spec": {"containers": [{"name": "c", "securityContext": {"runAsUser": user}} for user in users]}}

    assert shared_user(pod(5, 5)) == 5
    assert shared_user(pod(5, 0)) is None


def test_objects_that_env_refers_to_are_found():
    container = {
        "name": "c",
        "envFrom": [{"secretRef": {"name": "s"}}],
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
    }
    assert list(referenced_objects({"spec": {"containers": [container]}})) == [("configMap", "m"), ("secret", "s")]
