"""Where the API server is and how we prove who we are: a pod's service account, or a kubeconfig.

In a pod this reads three small files and two variables, without the `kubernetes` package: importing it costs
19 MB and 0.4 s (it pulls in its synchronous half too), a quarter of what a node agent may use. A kubeconfig that
names plain certificates or tokens is read here as well, because `kubernetes.aio.config` writes private keys into
the temporary directory, where they outlive a SIGKILL. Login plugins (`exec`, OIDC) are left to the library.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
PORT_VARIABLE = "KUBERNETES_SERVICE_PORT"


class CredentialError(Exception):
    """The credentials cannot be used; the message names the file, and the mend."""


@dataclass(frozen=True, slots=True)
class KubeCredentials:
    """One API server and one identity. PEM texts, not paths, so that nothing secret need be written anywhere.

    Attributes:
        server: URL without a trailing slash, for example `https://10.0.0.1:443`.
        ca_pem: certificates that may sign the server's; None uses the system's.
        token: bearer token, or None.
        certificate_pem: client certificate, or None.
        private_key_pem: key of the client certificate, or None.
        authorization: a whole Authorization header (a plugin's or basic auth); it wins over `token`.
        insecure: the server's certificate is not checked (`insecure-skip-tls-verify`).
        tls_server_name: name expected in the server's certificate when it is not the URL's.
        proxy_url: HTTP proxy of the kubeconfig, or None. Proxy variables of the environment are not read.
    """

    server: str
    ca_pem: str | None = None
    token: str | None = field(default=None, repr=False)
    certificate_pem: str | None = None
    private_key_pem: str | None = field(default=None, repr=False)
    authorization: str | None = field(default=None, repr=False)
    insecure: bool = False
    tls_server_name: str | None = None
    proxy_url: str | None = None

    def authorization_header(self) -> str | None:
        """Value of the Authorization header, or None with a client certificate only."""
        if self.authorization is not None:
            return self.authorization
        return f"Bearer {self.token}" if self.token is not None else None

    def tls_identity(self) -> tuple[object, ...]:
        """What the TLS context depends on: while it stays equal, connections can be kept."""
        return (self.ca_pem, self.certificate_pem, self.private_key_pem, self.insecure)

    def ssl_context(self) -> ssl.SSLContext:
        """The TLS context for this server. Blocking (a few milliseconds).

        Raises:
            CredentialError: a certificate or the key is not PEM, or they do not belong together.
        """
        try:
            context = ssl.create_default_context(cadata=self.ca_pem)
            if self.certificate_pem is not None:
                # load_cert_chain reads files only, so both texts pass through one that is gone at once.
                with tempfile.NamedTemporaryFile("w", suffix=".pem") as chain:
                    chain.write(f"{self.certificate_pem}\n{self.private_key_pem or ''}")
                    chain.flush()
                    context.load_cert_chain(chain.name)
        except (ssl.SSLError, ValueError) as error:
            raise CredentialError(f"certificates for {self.server} are not usable PEM: {error}") from error
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class CredentialSource(Protocol):
    """Reads the credentials afresh: tokens are replaced under a running process."""

    async def read(self) -> KubeCredentials:
        """The credentials as they are now.

        Raises:
            CredentialError: they are missing or unreadable.
        """
        ...


class ServiceAccountSource:
    """The identity of a pod: `token` and `ca.crt` in a projected volume, kept fresh by the kubelet.

    Args:
        directory: holds `token` and `ca.crt`, usually /var/run/secrets/kubernetes.io/serviceaccount.
        environ: holds KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self._directory = directory
        self._environ = environ

    async def read(self) -> KubeCredentials:
        """See `CredentialSource.read`."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> KubeCredentials:
        host, port = self._environ.get(HOST_VARIABLE), self._environ.get(PORT_VARIABLE)
        if not host or not port:
            raise CredentialError(
                f"{HOST_VARIABLE} and {PORT_VARIABLE} must both be set in a pod, "
                f"but are {host!r} and {port!r}; outside a pod pass a kubeconfig"
            )
        token = _read_text(self._directory / "token").strip()
        if not token:
            raise CredentialError(f"{self._directory / 'token'} is empty; the kubelet has not projected it")
        bracketed = f"[{host}]" if ":" in host else host
        return KubeCredentials(
            server=f"https://{bracketed}:{port}",
            ca_pem=_read_text(self._directory / "ca.crt"),
            token=token,
        )


class KubeconfigSource:
    """The current context of one kubeconfig file.

    Args:
        path: the kubeconfig.
        context: name of a context; None takes `current-context`.
    """

    def __init__(self, path: Path, context: str | None = None) -> None:
        self._path = path
        self._context = context

    async def read(self) -> KubeCredentials:
        """See `CredentialSource.read`."""
        cluster, user = await asyncio.to_thread(self._sections)
        if "exec" in user or "auth-provider" in user:
            return await self._read_with_plugin()
        return await asyncio.to_thread(self._credentials, cluster, user)

    def _sections(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        document = yaml.load(_read_text(self._path), Loader=_yaml_loader())  # noqa: S506 - a safe loader
        if not isinstance(document, dict):
            raise CredentialError(f"{self._path} is not a kubeconfig: it holds no mapping")
        wanted = self._context or document.get("current-context") or ""
        context = self._named(document, "contexts", wanted).get("context") or {}
        cluster = self._named(document, "clusters", str(context.get("cluster", ""))).get("cluster") or {}
        user_name = context.get("user")
        user = self._named(document, "users", user_name).get("user") or {} if user_name else {}
        if not cluster.get("server"):
            raise CredentialError(f"{self._path}: the cluster of context {wanted!r} has no `server`")
        return cluster, user

    def _named(self, document: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
        entries: list[Mapping[str, Any]] = document.get(section) or []
        for entry in entries:
            if entry.get("name") == name:
                return entry
        known = ", ".join(sorted(str(entry.get("name")) for entry in entries)) or "none"
        raise CredentialError(f"{self._path}: no entry {name!r} in `{section}` (there: {known})")

    def _credentials(self, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> KubeCredentials:
        token = user.get("token")
        if not token and user.get("tokenFile"):
            token = _read_text(self._path.parent / str(user["tokenFile"])).strip()
        basic = None
        if not token and user.get("username") and user.get("password"):
            pair = f"{user['username']}:{user['password']}".encode()
            basic = f"Basic {base64.b64encode(pair).decode()}"
        return KubeCredentials(
            server=str(cluster["server"]).rstrip("/"),
            ca_pem=self._pem(cluster, "certificate-authority"),
            token=token or None,
            certificate_pem=self._pem(user, "client-certificate"),
            private_key_pem=self._pem(user, "client-key"),
            authorization=basic,
            insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
            tls_server_name=cluster.get("tls-server-name"),
            proxy_url=cluster.get("proxy-url"),
        )

    def _pem(self, section: Mapping[str, Any], key: str) -> str | None:
        if section.get(f"{key}-data"):
            return base64.b64decode(section[f"{key}-data"]).decode()
        if section.get(key):
            return _read_text(self._path.parent / str(section[key]))
        return None

    async def _read_with_plugin(self) -> KubeCredentials:
        # Imported here because only a kubeconfig with a login plugin is worth what the package costs.
        from kubernetes.aio.client import Configuration  # noqa: PLC0415
        from kubernetes.aio.config import ConfigException, load_kube_config  # noqa: PLC0415

        configuration = Configuration()
        try:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(self._path), context=self._context, client_configuration=configuration
            )
        except ConfigException as error:
            raise CredentialError(f"{self._path}: the login plugin failed: {error}") from error
        return await asyncio.to_thread(_from_configuration, configuration)


def _from_configuration(configuration: Any) -> KubeCredentials:
    paths = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    ca_pem, certificate_pem, private_key_pem = (_read_text(Path(path)) if path else None for path in paths)
    return KubeCredentials(
        server=str(configuration.host),
        ca_pem=ca_pem,
        certificate_pem=certificate_pem,
        private_key_pem=private_key_pem,
        authorization=configuration.api_key.get("BearerToken"),
        insecure=not configuration.verify_ssl,
        tls_server_name=configuration.tls_server_name,
        proxy_url=configuration.proxy,
    )


def _yaml_loader() -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(f"cannot read {path}: {error}") from error


def credential_source(
    kubeconfig: Path | None, service_account_dir: Path | None, environ: Mapping[str, str]
) -> CredentialSource:
    """The service account when its token is there, else the kubeconfig.

    Raises:
        CredentialError: neither is given.
    """
    if service_account_dir is not None and (kubeconfig is None or (service_account_dir / "token").exists()):
        return ServiceAccountSource(service_account_dir, environ)
    if kubeconfig is None:
        raise CredentialError("no way to the API server: pass --kubeconfig, or --service-account-dir in a pod")
    return KubeconfigSource(kubeconfig)
