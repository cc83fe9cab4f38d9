from __future__ import annotations

import base64
import datetime
import ipaddress

import pytest
import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flyball_sim.controlplane import pki

NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)


@pytest.fixture
def authority() -> pki.Authority:
    return pki.Authority(NOW)


def test_an_issued_certificate_is_signed_by_its_authority(authority):
    issued = x509.load_pem_x509_certificate(authority.issue("someone", "client").certificate)

    issued.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))


def test_another_authority_of_the_same_name_did_not_sign_it(authority):
    issued = x509.load_pem_x509_certificate(authority.issue("someone", "client").certificate)
    other = x509.load_pem_x509_certificate(pki.Authority(NOW).certificate)

    with pytest.raises(InvalidSignature):
        issued.verify_directly_issued_by(other)


def test_a_client_certificate_carries_user_and_groups_and_may_not_serve(authority):
    issued = x509.load_pem_x509_certificate(authority.issue("jane", "client", ["system:masters"]).certificate)

    assert [a.value for a in issued.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["jane"]
    assert [a.value for a in issued.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == ["system:masters"]
    usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_server_certificate_answers_for_its_names_and_addresses(authority):
    issued = x509.load_pem_x509_certificate(
        authority.issue("kube-apiserver", "server", hosts=["127.0.0.1", "kubernetes.default"]).certificate
    )

    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    assert names.get_values_for_type(x509.DNSName) == ["kubernetes.default"]


def test_certificates_hold_an_hour_back_for_clocks_that_lag(authority):
    issued = x509.load_pem_x509_certificate(authority.issue("someone", "client").certificate)

    assert issued.not_valid_before_utc == NOW - datetime.timedelta(hours=1)
    assert issued.not_valid_after_utc == NOW + datetime.timedelta(days=365)


def test_the_service_account_keys_are_a_pair():
    private, public = pki.service_account_keys()

    key = serialization.load_pem_private_key(private, password=None)
    encoding = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert key.public_key().public_bytes(*encoding) == public


def test_a_kubeconfig_can_be_copied_because_it_embeds_everything(authority):
    identity = authority.issue("admin", "client")

    document = yaml.safe_load(pki.kubeconfig("https://127.0.0.1:1", authority.certificate, identity, "flyball"))

    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    assert cluster["server"] == "https://127.0.0.1:1"
    assert base64.b64decode(cluster["certificate-authority-data"]) == authority.certificate
    assert base64.b64decode(user["client-certificate-data"]) == identity.certificate
    assert base64.b64decode(user["client-key-data"]) == identity.key
    assert document["current-context"] == document["contexts"][0]["name"]
