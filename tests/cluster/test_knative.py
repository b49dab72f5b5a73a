"""What the functions do as Knative Services, seen through the gateway."""

import contextlib
import http.client
import json
import os
import re
import select
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from shared.framework.registry import HTTP_FUNCTIONS, load_all
from shared.runtime.manifests import functions
from shared.runtime.resource_names import resource_name
from tests.cluster.conftest import (
    ENVIRONMENT,
    HOST,
    IMAGE,
    NAMESPACE,
    PROMETHEUS_URL,
    USERS,
    call,
    connect,
    gateway,
    get_profile,
    kubectl,
    load,
    log_in,
    mailed_token,
    namespaced,
    new_address,
    on,
    pods,
)
from tests.conftest import PASSWORD, ROOT, wait_for
from tests.knative.test_dashboard import QUERIES

in_development = pytest.mark.skipif(ENVIRONMENT != "development", reason="of development, where all pods go to zero")

# The window, and the 30 s that Knative waits before the last pod goes, and as much again.
TO_ZERO_SECONDS = 240.0
BACKLOG = """
    INSERT INTO outbox (id, type, subject, data, request_id)
    SELECT gen_random_uuid(), 'com.aegis.user.password_reset_requested.v1', user_id,
           jsonb_build_object('user_id', user_id), ''
    FROM (SELECT gen_random_uuid() AS user_id FROM generate_series(1, 5000)) AS users
"""
"""Five thousand resets for unknown accounts: one pod has not taken them all before the autoscaler looks."""


def test_register_mail_verify_log_in_read_refresh_log_out() -> None:
    credentials = {"email": new_address(), "password": PASSWORD}
    assert call("POST", USERS, credentials | {"name": "김민준"})[0] == 202
    assert (
        call("POST", f"{USERS}/email/verify", {"token": mailed_token(credentials["email"]), "password": PASSWORD})[0]
        == 204
    )
    status, tokens, _ = call("POST", f"{USERS}/login", credentials)
    assert status == 200
    status, tokens, _ = call("POST", f"{USERS}/token/refresh", {"refresh_token": tokens["refresh_token"]})
    assert status == 200
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    status, profile, _ = call("GET", f"{USERS}/me", **bearer)
    assert (status, profile["name"]) == (200, "김민준")
    assert call("HEAD", f"{USERS}/me", **bearer)[0] == 200
    assert call("POST", f"{USERS}/logout", **bearer)[0] == 204
    assert call("GET", f"{USERS}/me", **bearer)[0] == 401


def test_what_has_no_route_is_a_problem() -> None:
    status, problem, _ = call("GET", "/nowhere")
    assert (status, problem["type"]) == (404, "urn:aegis:problem:not-found")
    status, _, headers = call("DELETE", f"{USERS}/me")
    assert (status, headers["Allow"]) == (405, "GET, HEAD, PATCH")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_gateway_answers_a_health_check(method: str) -> None:
    status, body, headers = call(method, "/health")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body == ({"status": "up"} if method == "GET" else None)


GET_EACH = """
import sys, urllib.error, urllib.request
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url, timeout=60).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


@pytest.fixture
def user_service() -> None:
    """Lets the Service user-service lead to our Gateway's Envoy, by the name that it has on this cluster."""
    selector = "app.kubernetes.io/managed-by=envoy-gateway,app.kubernetes.io/component=proxy"
    services = json.loads(kubectl("get", "services", "--all-namespaces", "-l", selector, "-o", "json"))["items"]
    names = [
        f"{one['metadata']['name']}.{one['metadata']['namespace']}.svc.cluster.local"
        for one in services
        # None where all Gateways share one Envoy.
        if one["metadata"]["labels"].get("gateway.envoyproxy.io/owning-gateway-namespace") in (NAMESPACE, None)
    ]
    assert names
    if namespaced("get", "service", "user-service", "-o", "jsonpath={.spec.externalName}") not in names:
        patch = {"spec": {"externalName": names[0]}}
        namespaced("patch", "service", "user-service", "--type", "merge", "--patch", json.dumps(patch))


@pytest.mark.usefixtures("user_service")
def test_a_pod_of_another_namespace_calls_the_api_by_the_guides_service_name() -> None:
    host = f"user-service.{NAMESPACE}"
    hosts = (host, f"{host}.svc", f"{host}.svc.cluster.local")
    urls = [f"http://{name}{path}" for name in hosts for path in ("/health", f"{USERS}/me")]
    run = ("run", "caller", "--rm", "--attach", "--quiet", "--restart=Never", f"--image={IMAGE}")
    printed = kubectl("--namespace", "default", *run, "--command", "--", "python", "-c", GET_EACH, *urls)
    assert printed.split() == ["200", "401"] * len(hosts)


FORGE = """
import http.client, sys
told = []
for forwarded in sys.argv[2:]:
    connection = http.client.HTTPConnection("kourier-internal.kourier-system.svc.cluster.local", timeout=60)
    headers = {"Host": sys.argv[1], "X-Forwarded-For": forwarded, "X-Gateway-Key": "0" * 64}
    connection.request("GET", "/api/v1/users/me", headers=headers)
    told.append(connection.getresponse().headers["RateLimit"])
print(*told)
"""


def test_a_pod_that_calls_a_function_past_the_gateway_does_not_choose_the_address_that_it_counts_for() -> None:
    """One of them shares no limit in development, and each would have one of its own."""
    forged = ("10.1.2.3", "198.51.100.1", "198.51.100.2, 10.1.2.3, 10.1.2.3")
    run = ("run", "forger", "--rm", "--attach", "--quiet", "--restart=Never", f"--image={IMAGE}")
    host = f"get-profile.{NAMESPACE}.svc.cluster.local"
    printed = kubectl("--namespace", "default", *run, "--command", "--", "python", "-c", FORGE, host, *forged)
    left = [int(line.split(";")[1].removeprefix("r=")) for line in printed.split()]
    assert left == [left[0], left[0] - 1, left[0] - 2]


def test_a_callers_request_id_comes_back_through_the_gateway() -> None:
    assert call("GET", "/nowhere", **{"X-Request-Id": "the-callers-own"})[2]["X-Request-Id"] == "the-callers-own"


def test_a_client_of_http_1_0_that_names_no_host_is_served() -> None:
    with contextlib.closing(connect()) as connection:
        connection.connect()
        connection.sock.sendall(b"GET /.well-known/jwks.json HTTP/1.0\r\n\r\n")
        response = http.client.HTTPResponse(connection.sock)
        response.begin()
        assert response.status == 200
        assert json.loads(response.read())["keys"]


def test_a_body_that_does_not_arrive_is_a_problem() -> None:
    """The function answers, or the gateway if the function is still starting."""
    with contextlib.closing(connect()) as connection:
        connection.putrequest("POST", f"{USERS}/login", skip_host=True)
        for name, value in {"Host": HOST, "Content-Type": "application/json", "Content-Length": "100"}.items():
            connection.putheader(name, value)
        connection.endheaders(b"{")
        response = connection.getresponse()
        assert response.status in (400, 408)
        assert json.loads(response.read())["status"] == response.status


def test_a_body_that_trickles_in_wakes_no_pod() -> None:
    wait_for(lambda: pods("login-with-passkey") == 0, seconds=TO_ZERO_SECONDS)
    with contextlib.closing(connect(timeout=2)) as connection:
        connection.putrequest("POST", f"{USERS}/login/passkey", skip_host=True)
        for name, value in {"Host": HOST, "Content-Type": "application/json", "Content-Length": "100"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        for _ in range(20):
            connection.send(b" ")
            if select.select([connection.sock], [], [], 1)[0]:
                break
        response = connection.getresponse()
        assert response.status == 408
        assert json.loads(response.read())["type"] == "urn:aegis:problem:request-timeout"
    assert pods("login-with-passkey") == 0


@pytest.mark.parametrize("kibibytes", [70, 300])
def test_a_body_that_is_too_large_is_refused_by_the_function_or_before_it(kibibytes: int) -> None:
    status, problem, _ = call("POST", f"{USERS}/login", {"email": "x" * kibibytes * 1024, "password": PASSWORD})
    assert status == 413
    assert kibibytes > 128 or problem["type"] == "urn:aegis:problem:body-too-large"


@pytest.mark.parametrize("path", ["/metrics", "/health/live", "/health/ready", "//metrics", "/./metrics"])
def test_health_and_metrics_are_not_public(path: str) -> None:
    assert call("GET", path)[0] == 404


def test_no_function_can_be_reached_past_the_gateway() -> None:
    services = json.loads(namespaced("get", "ksvc", "-o", "json"))["items"]
    assert {service["metadata"]["name"].replace("-", "_") for service in services} == set(functions())
    for service in services:
        assert service["status"]["url"].endswith(".svc.cluster.local")


def test_every_pod_passes_restricted_pod_security_with_a_read_only_root() -> None:
    namespace = json.loads(kubectl("get", "namespace", NAMESPACE, "-o", "json"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in json.loads(namespaced("get", "pods", "-o", "json"))["items"]:
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, pod["metadata"]["name"]
        # CloudNativePG's instances and PgBouncer watch their own resources.
        if "cnpg.io/cluster" not in pod["metadata"]["labels"]:
            assert not any("kube-api-access" in volume["name"] for volume in pod["spec"].get("volumes", []))


@in_development
def test_pods_grow_under_load_and_shrink_after(credentials: dict[str, str]) -> None:
    with load(30, log_in(credentials)) as running:
        started = time.monotonic()

        def grown() -> bool:
            running.pods.append(pods("login"))
            return running.pods[-1] >= 3

        wait_for(grown, seconds=180)
        print(f"\nlogin under 30 callers: 3 pods after {time.monotonic() - started:.0f} s")
    print(f"{running.statuses.total()} requests: {dict(running.statuses)}")
    assert running.statuses[200] > 0
    # More than it can take is a 503 with Retry-After, or a 504 where no turn comes within the route's 10 s, as while
    # new pods take the node's processors: never a broken connection or a 500.
    assert set(running.failed) <= {503, 504}
    started = time.monotonic()
    wait_for(lambda: pods("login") == 0, TO_ZERO_SECONDS)
    print(f"no pods {time.monotonic() - started:.0f} s after the load ended")


@in_development
def test_an_event_function_grows_with_a_backlog_and_shrinks_after() -> None:
    wait_for(lambda: pods("send-email") == 0, TO_ZERO_SECONDS)
    started = time.monotonic()
    on("postgres-0", BACKLOG)
    wait_for(lambda: pods("send-email") == 1, seconds=60)
    print(f"\n5000 events: one pod of send_email after {time.monotonic() - started:.0f} s")
    wait_for(lambda: pods("send-email") == 2, seconds=120)
    print(f"two after {time.monotonic() - started:.0f} s")
    wait_for(lambda: on("postgres-0", "SELECT count(*) FROM outbox WHERE sent_at IS NULL") == "0", seconds=180)
    wait_for(lambda: pods("send-email") == 0, seconds=600)
    print(f"none {time.monotonic() - started:.0f} s after the backlog came")


def test_a_new_revision_rolls_out_under_load_without_a_failed_request(bearers: list[dict[str, str]]) -> None:
    with load(4, get_profile(bearers, pause=0.2)) as running:
        wait_for(lambda: running.statuses[200] > 50, seconds=60)
        before = revision("get-profile")
        patch = {"spec": {"template": {"metadata": {"annotations": {"rolled-out-at": str(time.time())}}}}}
        namespaced("patch", "ksvc", "get-profile", "--type", "merge", "--patch", json.dumps(patch))
        wait_for(lambda: revision("get-profile") != before, seconds=60)
        after = running.statuses[200]
        wait_for(lambda: running.statuses[200] > after + 200, seconds=60)
        # The old revision's pods go while requests come.
        wait_for(lambda: pods_of_revision(before) == 0, TO_ZERO_SECONDS)
    print(f"\n{running.statuses.total()} requests over the roll-out, failed: {running.failed}")
    assert running.failed == {}


def test_a_deleted_pod_costs_no_request(bearers: list[dict[str, str]]) -> None:
    with load(4, get_profile(bearers, pause=0.2)) as running:
        wait_for(lambda: running.statuses[200] > 50, seconds=60)
        selector = "serving.knative.dev/service=get-profile"
        namespaced("delete", "pod", "-l", selector, "--wait=false")
        after = running.statuses[200]
        wait_for(lambda: running.statuses[200] > after + 300, seconds=90)
    print(f"\n{running.statuses.total()} requests over the deletion, failed: {running.failed}")
    assert running.failed == {}


def test_metrics_of_each_function_arrive_in_prometheus() -> None:
    load_all()
    nobody = uuid.UUID(int=0)

    def counted() -> set[str]:
        series = query('count by (function) (http_requests_total{service="user-service"})')
        return {one["metric"]["function"] for one in series}

    def touch(name: str) -> None:
        operation = HTTP_FUNCTIONS[name]
        path = re.sub(r"{\w+}", str(nobody), operation.path).replace("*", "nowhere")
        call("GET" if operation.method == "*" else operation.method, path, {})

    def touched() -> bool:
        with ThreadPoolExecutor(4) as pool:  # each may have to start first
            list(pool.map(touch, HTTP_FUNCTIONS.keys() - counted()))
        call("POST", USERS, {"email": new_address(), "password": PASSWORD})
        return counted() >= HTTP_FUNCTIONS.keys() | {"send_email"}

    wait_for(touched, seconds=300)


@in_development
def test_the_tour_calls_every_operation() -> None:
    address, port = gateway()
    create = f"kubectl --namespace {NAMESPACE} exec deploy/relay -- python -m knative.aegis admin create"
    url = f"http://{address}" + ("" if port == 80 else f":{port}")
    environment = {"URL": url, "HOST_HEADER": HOST, "ADMIN_CREATE": create}
    done = subprocess.run(
        [sys.executable, "-m", "tests.tour"],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@in_development
def test_every_panel_of_the_dashboard_shows_data() -> None:
    """After the tour, which calls every operation."""

    def shows(expression: str) -> bool:
        for variable, value in (("$__rate_interval", "5m"), ("$environment", ".*"), ("$function", ".*")):
            expression = expression.replace(variable, value)
        return any(one["value"][1] != "NaN" for one in query(expression))

    for expression in sorted(QUERIES):
        print(expression)
        wait_for(partial(shows, expression), seconds=60)


@in_development
def test_functions_at_zero_answer_and_an_event_wakes_send_email_from_zero(credentials: dict[str, str]) -> None:
    """Prometheus scrapes all the while, and keeps none of them from zero."""
    names = [resource_name(name) for name in functions()]
    wait_for(lambda: sum(pods(name) for name in names) == 0, TO_ZERO_SECONDS)
    started = time.monotonic()
    assert call("POST", f"{USERS}/login", credentials)[0] == 200
    print(f"\nlogin answered from zero after {time.monotonic() - started:.1f} s")
    address = new_address()
    started = time.monotonic()
    assert call("POST", USERS, {"email": address, "password": PASSWORD})[0] == 202
    print(f"register answered from zero after {time.monotonic() - started:.1f} s")
    assert mailed_token(address)
    print(f"its mail was there {time.monotonic() - started:.1f} s after the request, by send_email from zero")


def query(expression: str) -> list[dict[str, Any]]:
    if not PROMETHEUS_URL:
        pytest.skip("NO PROMETHEUS: set PROMETHEUS_URL to see that scrapes arrive")
    url = f"{PROMETHEUS_URL}/api/v1/query?query={urllib.parse.quote(expression)}"
    with urllib.request.urlopen(url, timeout=10) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result


def revision(service: str) -> str:
    """The revision that takes the traffic."""
    return namespaced("get", "ksvc", service, "-o", "jsonpath={.status.traffic[0].revisionName}")


def pods_of_revision(name: str) -> int:
    return len(
        json.loads(namespaced("get", "pods", "-l", f"serving.knative.dev/revision={name}", "-o", "json"))["items"]
    )
