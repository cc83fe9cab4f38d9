"""A container becomes the process a user expects, or is refused with a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_sim.node.podspec import (
    Identity,
    PathRewriter,
    PodContext,
    PodSpecError,
    expand,
    identity_of,
    image_name,
    process_spec,
)


def pod(container, **spec):
    return {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u-1", "labels": {"app": "web"}},
        "spec": {"nodeName": "gpu-0", "serviceAccountName": "sa", "containers": [container], **spec},
    }


def context(**changes):
    base = {
        "pod_ip": "127.1.1.1",
        "host_ip": "127.1.0.1",
        "volumes": {"data": "/node/v/u/data", "token": "/node/v/u/token"},
        "config_maps": {"settings": {"level": "high"}},
        "secrets": {"keys": {"password": "hush"}},
        "api_host": "127.0.0.1",
        "api_port": 6443,
        "base_env": {"PATH": "/bin"},
    }
    return PodContext(**(base | changes))


def spec_of(container, **changes):
    container = {"name": "c", "image": "example/flyball-agent:1", **container}
    return process_spec(pod(container), container, context(**changes), "/home")


def test_a_mount_path_is_replaced_wherever_it_stands_as_a_path_prefix():
    rewriter = PathRewriter([("/run/flyball", "/n/run"), ("/run", "/n/other"), ("/driver", "/n/drv")])
    assert rewriter.rewrite("--socket=/run/flyball/a.sock") == "--socket=/n/run/a.sock"
    assert rewriter.rewrite("unix:///run/flyball/a.sock") == "unix:///n/run/a.sock"
    assert rewriter.rewrite("/run/x:/driver/lib,/driver") == "/n/other/x:/n/drv/lib,/n/drv"
    assert rewriter.rewrite("cat '/run/flyball'") == "cat '/n/run'"


def test_what_only_looks_like_a_mount_path_is_left_alone():
    rewriter = PathRewriter([("/run", "/n/run")])
    for text in ("/runner/x", "/var/run/x", "/run-time", "/run.d/x", "x/run/y", "/a-/run"):
        assert rewriter.rewrite(text) == text


def test_a_real_directory_below_another_mount_path_is_not_rewritten_again():
    container = {
        "env": [{"name": "DATA", "value": "/data/x"}],
        "args": ["$(DATA)/file"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "token", "mountPath": "/node"}],
    }
    spec = spec_of(container)
    assert spec.argv[-1] == "/node/v/u/data/x/file"
    assert spec.env["DATA"] == "/node/v/u/data/x"


@given(st.text(alphabet="ab/-. :=", max_size=30))
def test_rewriting_to_the_same_paths_changes_nothing(text):
    assert PathRewriter([("/a", "/a"), ("/a/b", "/a/b")]).rewrite(text) == text


def test_a_sub_path_mount_is_the_directory_below_the_volume():
    mount = {"name": "data", "mountPath": "/etc/x", "subPath": "inner"}
    assert spec_of({"args": ["/etc/x/y"], "volumeMounts": [mount]}).argv[-1] == "/node/v/u/data/inner/y"


def test_variables_expand_as_kubernetes_expands_them():
    variables = {"A": "1", "B": "two"}
    assert expand("$(A)-$(B)-$(C)-$$(A)-$A-$$", variables) == "1-two-$(C)-$(A)-$A-$"


def test_env_entries_see_only_those_before_them():
    spec = spec_of(
        {"env": [{"name": "A", "value": "$(B)"}, {"name": "B", "value": "b"}, {"name": "C", "value": "$(B)c"}]}
    )
    assert (spec.env["A"], spec.env["C"]) == ("$(B)", "bc")


def test_the_downward_api_tells_who_and_where_the_pod_is():
    fields = {
        "NAME": "metadata.name",
        "NS": "metadata.namespace",
        "UID": "metadata.uid",
        "NODE": "spec.nodeName",
        "SA": "spec.serviceAccountName",
        "IP": "status.podIP",
        "HOST": "status.hostIP",
        "APP": "metadata.labels['app']",
    }
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    spec = spec_of({"env": env, "args": ["--bind-address=$(IP)"]})
    assert [spec.env[name] for name in fields] == [
        "p", "ns", "u-1", "gpu-0", "sa", "127.1.1.1", "127.1.0.1", "web",
    ]  # fmt: skip
    assert spec.argv == ("flyball-agent", "--bind-address=127.1.1.1")


def test_env_comes_from_config_maps_and_secrets():
    container = {
        "envFrom": [{"configMapRef": {"name": "settings"}, "prefix": "S_"}],
        "env": [
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
            {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "no", "optional": True}}},
        ],
    }
    env = spec_of(container).env
    assert (env["S_level"], env["PASSWORD"], "NONE" in env) == ("high", "hush", False)


def test_a_container_inherits_only_the_base_and_the_api_servers_address():
    assert dict(spec_of({}).env) == {
        "PATH": "/bin",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": "6443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "6443",
    }


def test_gpu_variables_are_added_as_they_are():
    spec = spec_of({"volumeMounts": [{"name": "data", "mountPath": "/s"}]}, extra_env={"c": {"STATE": "/s/file"}})
    assert spec.env["STATE"] == "/s/file"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("flyball-engine", "flyball-engine"),
        ("ghcr.io/x/flyball-agent:0.1", "flyball-agent"),
        ("host:5000/flyball-operator@sha256:aa", "flyball-operator"),
    ],
)
def test_an_image_is_known_by_its_last_path_element(image, name):
    assert image_name(image) == name


def test_an_engine_image_without_command_runs_the_engine():
    spec = spec_of({"image": "x/flyball-engine:2", "args": ["--port=8000"]})
    assert spec.argv == ("flyball-sim", "engine", "--port=8000")


def test_an_unknown_image_needs_a_command():
    with pytest.raises(PodSpecError, match=r'image "busybox" .* give the container a command') as refused:
        spec_of({"image": "busybox"})
    assert refused.value.reason == "ErrImagePull"
    assert spec_of({"image": "busybox", "command": ["sh"]}).argv == ("sh",)


def test_a_missing_key_is_named():
    reference = {"configMapKeyRef": {"name": "settings", "key": "colour"}}
    with pytest.raises(PodSpecError, match='key "colour" of configMap "settings"'):
        spec_of({"env": [{"name": "X", "valueFrom": reference}]})


def test_users_follow_the_container_before_the_pod():
    container = {"name": "c", "securityContext": {"runAsUser": 0, "runAsGroup": 0}}
    shared = {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 7, "supplementalGroups": [9]}
    assert identity_of(pod(container, securityContext=shared), container) == Identity(0, 0, (7, 9))
    assert identity_of(pod({"name": "c"}, securityContext=shared), {"name": "c"}) == Identity(65532, 65532, (7, 9))
    assert identity_of(pod({"name": "c"}), {"name": "c"}) is None


def test_run_as_non_root_without_a_user_is_refused():
    container = {"name": "c", "securityContext": {"runAsNonRoot": True}}
    with pytest.raises(PodSpecError, match="set runAsUser to a positive user id"):
        identity_of(pod(container), container)


def test_users_are_honoured_only_where_the_node_may():
    container = {"securityContext": {"runAsUser": 5}}
    assert spec_of(container).identity is None
    assert spec_of(container, honour_users=True).identity == Identity(5, 0)
