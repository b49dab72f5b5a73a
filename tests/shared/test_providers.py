"""Requests to providers that are slow, hang, or say when to come again."""

import json
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from functions import send_sms, verify_business
from knative.local.servers import free_port
from shared.providers import calls, mail_provider
from shared.runtime.manifests import triggers
from shared.runtime.problems import ServiceUnavailable
from tests.conftest import wait_for
from tests.providers import Answer, Provider, listening

pytestmark = pytest.mark.no_service

PROVIDER = calls.Provider("tested", "The provider")
SECONDS = 0.3
"""So long a provider of a test has; it would take much longer."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with listening(lambda _: Answer(200, {"said": "yes"})) as server:
        yield server


def ask(url: str, seconds: float = SECONDS) -> Any:
    return calls.ask(PROVIDER, "POST", url, seconds=seconds, json={}).json()


def fault(url: str) -> str:
    """What is wrong with a provider that does not answer."""
    with pytest.raises(ServiceUnavailable) as raised:
        ask(url)
    assert raised.value.headers["Retry-After"] == "5"
    return str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(after=threading.Event()),
        Answer(trickles="head"),
        Answer(trickles="body"),
        Answer(202, trickles="body", body=b'{"said": "yes"}'),
    ],
    ids=["hangs", "trickles its head", "trickles its body", "trickles on after its answer"],
)
def test_a_provider_whose_answer_does_not_come_to_its_end_is_given_up(provider: Provider, answer: Answer) -> None:
    provider.answers = [answer]
    assert fault(provider.url) == "The provider does not answer in time."
    assert ask(provider.url) == {"said": "yes"}  # over a connection of its own


def test_a_provider_that_is_not_there_or_breaks_off_is_named(provider: Provider) -> None:
    provider.answers = [Answer(drops=True)]
    assert fault(provider.url) == "The provider failed to answer (ProtocolError)."
    assert fault(f"http://127.0.0.1:{free_port()}") == "The provider cannot be reached."
    assert fault("http://nowhere.invalid") == "The provider cannot be reached."
    assert fault(provider.url.replace("http:", "https:")) == "The provider failed to answer (SSLError)."


def test_a_provider_with_a_certificate_that_nobody_vouches_for_is_told_nothing(
    provider: Provider, tmp_path: Path
) -> None:
    """ASVS 5.0, 12.3.2."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(self_signed("127.0.0.1"))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    provider.socket = serving.wrap_socket(provider.socket, server_side=True)
    url = provider.url.replace("http:", "https:")
    assert fault(url) == "The provider failed to answer (SSLError)."
    assert provider.asked == []
    with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=str(certificate))) as response:
        assert json.load(response) == {"said": "yes"}  # who trusts the certificate is served


def self_signed(address: str) -> bytes:
    """A private key and its certificate for an IP address (PEM)."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(key, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + certificate.public_bytes(Encoding.PEM)


def test_an_answer_in_time_is_given_however_often(provider: Provider) -> None:
    assert [ask(provider.url, seconds=10) for _ in range(3)] == [{"said": "yes"}] * 3
    wait_for(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", "7"),
        ("0", "1"),
        ("86400", "60"),
        ("", "5"),
        ("soon", "5"),
        ("-3", "5"),
        ("9" * 5000, "60"),
        (format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True), "1"),
        (format_datetime(datetime(2100, 1, 1, tzinfo=UTC), usegmt=True), "60"),
        ("Wed, 01 Jan 2020 00:00:00", "5"),
    ],
)
def test_a_provider_that_says_when_to_come_again_is_heard_within_bounds(
    provider: Provider, value: str, seconds: str
) -> None:
    provider.answers = [Answer(429, headers={"Retry-After": value})]
    response = calls.ask(PROVIDER, "POST", provider.url, seconds=10)
    problem = calls.not_now(PROVIDER, response)
    assert (problem.status, problem.headers["Retry-After"]) == (503, seconds)
    assert str(problem) == "The provider answered 429."


def test_all_that_a_delivery_asks_fits_its_time() -> None:
    asked = {
        "send-email": mail_provider.ANSWER_SECONDS,
        "send-sms": send_sms.ANSWER_SECONDS,
        "verify-business": 2 * verify_business.ANSWER_SECONDS,
    }
    given = {trigger.name: trigger.timeout_seconds for trigger in triggers()}
    assert all(seconds < given[name] for name, seconds in asked.items())
