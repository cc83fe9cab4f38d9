from __future__ import annotations

import datetime
import random
import socket
from pathlib import Path

from flyball_sim.controlplane.components import COMPONENTS, Layout, Ports, components, files

PORTS = Ports(etcd=1, etcd_peer=2, apiserver=3, controller_manager=4, scheduler=5)


def arguments_of(*, audit: bool = False) -> dict[str, tuple[str, ...]]:
    made = components(Path("/bin"), Layout(Path("/data")), PORTS, audit=audit)
    return {component.name: component.argv for component in made}


def test_etcd_starts_first_and_the_api_server_before_its_clients():
    assert tuple(arguments_of()) == COMPONENTS == (
        "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
    )  # fmt: skip


def test_nothing_listens_beyond_the_loopback_interface():
    for name, argv in arguments_of().items():
        listening = [flag for flag in argv if "bind-address" in flag or "--listen" in flag]
        assert listening, name
        assert all("127.0.0.1" in flag for flag in listening)


def test_pods_and_nodes_are_authorized_as_on_a_real_cluster():
    argv = arguments_of()["kube-apiserver"]

    assert "--authorization-mode=Node,RBAC" in argv
    assert "--enable-admission-plugins=NodeRestriction" in argv


def test_auditing_is_off_unless_it_is_asked_for():
    assert not any("audit" in flag for flag in arguments_of()["kube-apiserver"])
    assert "--audit-log-path=/data/audit.log" in arguments_of(audit=True)["kube-apiserver"]


def test_every_file_that_a_flag_names_is_written():
    layout = Layout(Path("/data"))
    written = {str(path) for path in files(layout, "https://127.0.0.1:3", datetime.datetime.now(datetime.UTC))}
    named = {
        flag.partition("=")[2]
        for argv in arguments_of(audit=True).values()
        for flag in argv
        if flag.partition("=")[2].startswith("/data/pki/")
    }

    assert named <= written


def test_a_port_in_use_is_never_chosen():
    first = Ports.choose(random.Random(1))
    with socket.create_server(("127.0.0.1", first.apiserver)):
        second = Ports.choose(random.Random(1))

    assert first.apiserver not in vars(second).values()
    assert len(set(vars(second).values())) == 5
