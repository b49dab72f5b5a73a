"""What Envoy Gateway answers by itself on a cluster, as the problems that the functions and the local router answer."""

import json
from typing import Any

import pytest

from shared.http.request import MAX_BODY_BYTES, SECURITY_HEADERS
from shared.runtime.manifests import route_timeout_seconds
from shared.runtime.problems import REQUEST_SECONDS, Problem, RequestTimeout, ServiceUnavailable
from tests.knative.environments import ENVIRONMENTS, objects_of

pytestmark = pytest.mark.no_service

REPLACED: dict[int, Problem] = {408: RequestTimeout(), 502: ServiceUnavailable(), 504: ServiceUnavailable()}
"""Statuses of Envoy that no function answers with."""


@pytest.fixture(params=ENVIRONMENTS)
def environment(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def policy(environment: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = objects_of(environment)[kind, "api"]["spec"]
    assert found["targetRefs"] == [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "api"}]
    return found


def test_errors_of_the_gateway_are_the_problems_that_functions_answer_with(environment: str) -> None:
    overrides = {
        status["value"]: override["response"]
        for override in policy(environment, "BackendTrafficPolicy")["responseOverride"]
        for status in override["match"]["statusCodes"]
    }
    assert overrides.keys() == REPLACED.keys()
    for status, problem in REPLACED.items():
        response = overrides[status]
        expected: dict[str, Any] = {**problem.body("")}
        del expected["request_id"]
        assert json.loads(response["body"]["inline"]) == expected
        assert "%" not in response["body"]["inline"]  # Envoy would take it for one of its own operators
        assert response.get("statusCode", status) == problem.status
        assert response["contentType"] == "application/problem+json"
        headers = {header["name"]: header["value"] for header in response["header"]["set"]}
        assert headers == {"Cache-Control": SECURITY_HEADERS["Cache-Control"], **problem.headers}


def test_a_slow_caller_holds_neither_a_pod_nor_the_gateway(environment: str) -> None:
    client, backend = policy(environment, "ClientTrafficPolicy"), policy(environment, "BackendTrafficPolicy")
    http = client["timeout"]["http"]
    assert http["requestReceivedTimeout"] == f"{REQUEST_SECONDS}s"
    assert backend["requestBuffer"] == {"limit": f"{2 * MAX_BODY_BYTES // 1024}Ki"}
    limit = client["connection"]["connectionLimit"]
    assert limit["value"] > 0
    seconds = {name: int(value.removesuffix("s")) for name, value in (limit | http).items() if name != "value"}
    assert route_timeout_seconds() < seconds["streamIdleTimeout"]  # or a function could not take its time
    assert REQUEST_SECONDS + route_timeout_seconds() < seconds["maxStreamDuration"] <= 60
