"""Who may deliver events and schedules, and that nobody else changes anything by it."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from shared.events import delivery_tokens
from shared.framework.registry import EVENT_FUNCTIONS, load_all
from shared.runtime import settings
from shared.runtime.manifests import schedules, triggers
from tests.conftest import client, counted, envelope

ISSUER = "https://kubernetes.default.svc.cluster.local"
SENDER = "system:serviceaccount:aegis-user-service:verify-business-oidc-eventing.knative.dev-trigger"
SUSPENDED = "com.aegis.user.suspended.v1"


def deliver(function: str, authorization: str, headers: dict[str, str] | None = None) -> Any:
    sent = {"Authorization": authorization, **(headers or envelope("com.example.any"))}
    return client(function).post("/", json={"user_id": str(uuid.uuid4())}, headers=sent)


def event_functions() -> list[str]:
    load_all()
    return sorted(EVENT_FUNCTIONS)


@pytest.mark.parametrize("function", event_functions())
def test_a_delivery_without_a_token_is_refused_and_counted(function: str) -> None:
    before = counted("event_outcomes_total", outcome="unauthenticated")
    response = deliver(function, "")
    assert (response.status_code, response.json["type"]) == (401, "urn:aegis:problem:unauthenticated-delivery")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert counted("event_outcomes_total", outcome="unauthenticated") == before + 1


def test_a_token_for_one_function_is_none_for_another() -> None:
    assert deliver("verify_business", delivery_tokens.authorization("send-email")["Authorization"]).status_code == 401


def test_a_token_is_good_for_minutes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    token = delivery_tokens.authorization("verify-business")["Authorization"]
    assert deliver("verify_business", token).status_code == 422  # it is let in, and its event is none that there is
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 300)
    assert deliver("verify_business", token).status_code == 401


def test_a_token_whose_time_was_changed_is_refused() -> None:
    expires, _, signature = (
        delivery_tokens.authorization("verify-business")["Authorization"].partition(" ")[2].partition(".")
    )
    assert deliver("verify_business", f"Bearer {int(expires) + 3600}.{signature}").status_code == 401


@pytest.mark.parametrize(
    "given", ["Basic YTpi", "Bearer", "Bearer .", "Bearer a.b.c", "Bearer 9" + "9" * 9000, "Bearer é.é"]
)
def test_what_is_no_token_is_refused(given: str) -> None:
    assert deliver("verify_business", given).status_code == 401


KEY = rsa.generate_private_key(65537, 2048)


@pytest.fixture
def knative(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster whose tokens are taken."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    monkeypatch.setenv("DELIVERY_ISSUER", ISSUER)
    monkeypatch.setenv("DELIVERY_JWKS", json.dumps({"keys": [{**public, "kid": "cluster", "alg": "RS256"}]}))
    settings.settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.settings.cache_clear()


def token_of(key: Any = KEY, kid: str = "cluster", algorithm: str = "RS256", **changes: Any) -> str:
    """The token that Knative Eventing sends to verify_business, but for these claims."""
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": SENDER, "aud": ["verify-business"], "iat": now, "exp": now + 3600, **changes}
    return "Bearer " + jwt.encode(claims, key, algorithm, {"kid": kid})


@pytest.mark.usefixtures("knative")
def test_a_delivery_of_knatives_own_broker_is_let_in() -> None:
    assert deliver("verify_business", token_of()).status_code == 422  # its event is none that there is


@pytest.mark.usefixtures("knative")
@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["send-email"]},
        {"iss": "https://elsewhere.example.com"},
        {"exp": int(time.time()) - 3600},
        {"sub": "system:serviceaccount:aegis-user-service:user-service"},
        {"sub": "system:serviceaccount:tenant:verify-business-oidc-eventing.knative.dev-trigger"},
        {"key": rsa.generate_private_key(65537, 2048)},
        {"kid": "unknown"},
        {"key": "s" * 32, "algorithm": "HS256"},
    ],
    ids=["another function", "another issuer", "expired", "another account", "another namespace", "another key",
         "an unknown key", "a shared secret"],
)  # fmt: skip
def test_a_token_of_the_cluster_that_is_not_the_brokers_for_this_function_is_refused(changes: dict[str, Any]) -> None:
    assert deliver("verify_business", token_of(**changes)).status_code == 401


def test_a_token_of_a_cluster_is_refused_where_none_is_trusted() -> None:
    assert deliver("verify_business", token_of()).status_code == 401


def test_every_trigger_and_schedule_names_its_function_as_the_audience() -> None:
    from shared.runtime.manifests import manifests

    destinations = [
        destination
        for manifest in manifests()
        if manifest["kind"] in ("Trigger", "PingSource")
        for spec in [manifest["spec"]]
        for destination in (
            [spec["sink"]] if "sink" in spec else [spec["subscriber"], spec["delivery"]["deadLetterSink"]]
        )
    ]
    assert len(destinations) == 2 * len(triggers()) + len(schedules())
    assert all(destination["audience"] == destination["ref"]["name"] for destination in destinations)
