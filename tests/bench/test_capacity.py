"""The requests of the capacity measurement succeed, and the figures fit the targets."""

import pytest

from shared.framework.registry import load_all
from shared.runtime.resource_names import resource_name
from tests.bench import accounts, measured
from tests.bench.cluster.traffic import TRAFFIC
from tests.bench.measured import function_of, objective
from tests.conftest import client
from tests.knative.environments import functions_of, objects_of, scaling

ACCOUNTS = 200


@pytest.mark.usefixtures("own_database")
def test_every_request_that_is_measured_succeeds() -> None:
    accounts.load(ACCOUNTS)
    for name in measured.FUNCTIONS:
        for request in TRAFFIC[name](2):
            head, _, body = request.partition(b"\r\n\r\n")
            line, *headers = head.decode().split("\r\n")
            method, target, _ = line.split(" ")
            answer = client(function_of(name)).open(
                target, method=method, headers=[tuple(header.split(": ", 1)) for header in headers], data=body
            )
            assert 200 <= answer.status_code < 300, (name, answer.text)


def test_a_pod_with_as_many_requests_as_its_target_is_within_the_objective_of_its_function() -> None:
    figures = measured.read()
    targets = {one["metadata"]["name"]: int(scaling(one)["target"]) for one in functions_of(objects_of("production"))}
    assert figures.keys() == {*measured.FUNCTIONS}
    assert load_all() >= {function_of(name) for name in figures}
    for name, figure in figures.items():
        target = targets[resource_name(function_of(name))]
        assert any(one.connections >= target and one.p95 <= objective(name) for one in figure.tries), name
