"""Where credentials come from, and what is said when they do not."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest
import yaml

from flyball_api.kube_credentials import (
    CredentialError,
    KubeconfigSource,
    KubeCredentials,
    ServiceAccountSource,
    credential_source,
)

POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def encoded(text):
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def service_account(tmp_path):
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    (directory / "token").write_text("secret\n")
    (directory / "ca.crt").write_text("CA")
    return directory


@pytest.fixture
def write_kubeconfig(tmp_path):
    def write(cluster=None, user=None, **changes):
        document = {
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://api:6443/", **(cluster or {})}}],
            "users": [{"name": "u", "user": user or {}}],
            **changes,
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


async def test_a_pod_is_its_service_account(service_account):
    credentials = await ServiceAccountSource(service_account, POD).read()
    assert credentials == KubeCredentials(server="https://10.0.0.1:443", ca_pem="CA", token="secret")
    assert credentials.authorization_header() == "Bearer secret"


async def test_a_service_address_of_ipv6_gets_its_brackets(service_account):
    source = ServiceAccountSource(service_account, POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"})
    assert (await source.read()).server == "https://[fd00::1]:443"


async def test_a_token_replaced_in_the_volume_is_read(service_account):
    source = ServiceAccountSource(service_account, POD)
    await source.read()
    (service_account / "token").write_text("next")
    assert (await source.read()).token == "next"


async def test_a_pod_without_its_variables_is_told_which_and_what_to_do(service_account):
    with pytest.raises(CredentialError, match=r"KUBERNETES_SERVICE_PORT must both be set.*pass a kubeconfig"):
        await ServiceAccountSource(service_account, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).read()


async def test_an_empty_or_missing_token_is_named(service_account):
    (service_account / "token").write_text("")
    with pytest.raises(CredentialError, match="token is empty"):
        await ServiceAccountSource(service_account, POD).read()
    (service_account / "token").unlink()
    with pytest.raises(CredentialError, match=r"cannot read .*/token"):
        await ServiceAccountSource(service_account, POD).read()


async def test_a_kubeconfig_with_embedded_certificates_is_read(write_kubeconfig):
    path = write_kubeconfig(
        {"certificate-authority-data": encoded("CA"), "tls-server-name": "kubernetes"},
        {"client-certificate-data": encoded("CERT"), "client-key-data": encoded("KEY")},
    )
    assert await KubeconfigSource(path).read() == KubeCredentials(
        server="https://api:6443",
        ca_pem="CA",
        certificate_pem="CERT",
        private_key_pem="KEY",
        tls_server_name="kubernetes",
    )


async def test_files_of_a_kubeconfig_are_relative_to_it(write_kubeconfig):
    path = write_kubeconfig({"certificate-authority": "ca.pem"}, {"tokenFile": "token"})
    (path.parent / "ca.pem").write_text("CA")
    (path.parent / "token").write_text("secret\n")
    credentials = await KubeconfigSource(path).read()
    assert (credentials.ca_pem, credentials.token) == ("CA", "secret")


async def test_a_user_with_a_password_gets_a_basic_header(write_kubeconfig):
    path = write_kubeconfig(user={"username": "admin", "password": "pw"})
    header = (await KubeconfigSource(path).read()).authorization_header()
    assert header == f"Basic {encoded('admin:pw')}"


async def test_a_login_plugin_is_run(write_kubeconfig, tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        'print(\'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
        '"status":{"token":"from-plugin"}}\')'
    )
    path = write_kubeconfig(
        {"insecure-skip-tls-verify": True},
        {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": sys.executable,
                "args": [str(plugin)],
                "interactiveMode": "Never",
            }
        },
    )
    credentials = await KubeconfigSource(path).read()
    assert credentials.authorization_header() == "Bearer from-plugin"
    assert credentials.server == "https://api:6443"
    assert credentials.insecure


async def test_an_unknown_context_is_named_beside_those_there_are(write_kubeconfig):
    with pytest.raises(CredentialError, match=r"no entry 'there' in `contexts` \(there: here\)"):
        await KubeconfigSource(write_kubeconfig(), "there").read()


@pytest.mark.parametrize("content", ["", "just words", "[1, 2]"])
async def test_a_file_that_is_no_kubeconfig_is_called_so(tmp_path, content):
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    with pytest.raises(CredentialError, match="not a kubeconfig"):
        await KubeconfigSource(path).read()


def test_certificates_that_are_no_pem_are_refused_with_the_servers_name():
    with pytest.raises(CredentialError, match="certificates for https://api are not usable PEM"):
        KubeCredentials(server="https://api", ca_pem="nonsense").ssl_context()


def test_neither_secret_shows_in_a_log():
    shown = repr(KubeCredentials("https://api", token="hush", private_key_pem="hush", authorization="hush"))
    assert "hush" not in shown


def test_the_service_account_goes_before_the_kubeconfig_where_there_is_one(service_account, tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    assert isinstance(credential_source(kubeconfig, service_account, POD), ServiceAccountSource)
    assert isinstance(credential_source(kubeconfig, tmp_path / "none", POD), KubeconfigSource)
    assert isinstance(credential_source(kubeconfig, None, POD), KubeconfigSource)
    with pytest.raises(CredentialError, match="pass --kubeconfig"):
        credential_source(None, None, POD)


def test_a_pod_does_not_pay_for_the_official_client():
    code = (
        "import sys, flyball_api.kube, flyball_api.reflector, flyball_api.lease; sys.exit('kubernetes' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
