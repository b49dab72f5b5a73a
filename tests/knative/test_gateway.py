"""What Envoy Gateway answers by itself on a cluster, as the problems that the functions and the local router answer."""

import json
from typing import Any

import pytest

from shared.problems import REQUEST_SECONDS, Problem, RequestTimeout, ServiceUnavailable
from shared.request import SECURITY_HEADERS
from tests.knative.environments import ENVIRONMENTS, objects_of

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


def test_the_gateway_waits_for_a_request_as_long_as_the_local_router(environment: str) -> None:
    timeout = policy(environment, "ClientTrafficPolicy")["timeout"]
    assert timeout == {"http": {"requestReceivedTimeout": f"{REQUEST_SECONDS}s"}}
