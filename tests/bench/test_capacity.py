"""What capacity is measured with is what people and events ask for."""

import pytest

from tests.bench import accounts, measured
from tests.bench.cluster.traffic import TRAFFIC
from tests.bench.measured import function_of
from tests.conftest import client

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
