"""What staging and production have and development has not, seen on a cluster: ENVIRONMENT=staging, or production."""

import http.client
import json
import threading
import time

import pytest

from tests.cluster.conftest import ENVIRONMENT, HOST, USERS, call, gateway, namespaced, new_address, on, pods
from tests.cluster.documents import commands, shell
from tests.conftest import PASSWORD, ROOT, until_stopped, wait_for

WARM = {"staging": 2, "production": 3}.get(ENVIRONMENT)
NODES = {"staging": 3, "production": 6}.get(ENVIRONMENT)

pytestmark = pytest.mark.skipif(ENVIRONMENT == "development", reason="not of development: set ENVIRONMENT=staging")
in_staging = pytest.mark.skipif(ENVIRONMENT != "staging", reason="of staging: set ENVIRONMENT=staging")
in_production = pytest.mark.skipif(ENVIRONMENT != "production", reason="of production: set ENVIRONMENT=production")


def test_plain_http_is_sent_to_https() -> None:
    connection = http.client.HTTPConnection(gateway()[0], 80, timeout=10)
    connection.request("GET", f"{USERS}/me?a=b", headers={"Host": HOST})
    response = connection.getresponse()
    assert (response.status, response.headers["Location"]) == (301, f"https://{HOST}{USERS}/me?a=b")


def test_hot_functions_keep_some_pods_and_the_others_none() -> None:
    names = [name.partition("/")[2] for name in namespaced("get", "ksvc", "-o", "name").split()]
    hot = {"get-profile", "login", "refresh-token"}
    wait_for(lambda: all(pods(name) == WARM for name in hot), seconds=120)
    # Those of the start go after scale-down-delay, those that were called after it and the window.
    wait_for(lambda: sum(pods(name) for name in names if name not in hot) == 0, seconds=600)
    assert {name: pods(name) for name in hot} == dict.fromkeys(hot, WARM)


@in_staging
def test_the_replica_has_what_the_primary_committed(credentials: dict[str, str]) -> None:
    assert call("POST", f"{USERS}/login", credentials)[0] == 200
    committed = on("postgres-0", "SELECT pg_current_wal_lsn()")
    started = time.monotonic()
    replayed = f"SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= '{committed}'"
    wait_for(lambda: on("postgres-replica-0", replayed) == "t", seconds=30)
    print(f"\nthe replica had it {time.monotonic() - started:.1f} s later, as kubectl sees it")
    assert on("postgres-0", "SELECT active FROM pg_replication_slots") == "t"


@in_staging
def test_the_service_follows_a_failover_and_the_way_back_without_a_restart_and_loses_nothing() -> None:
    """By the commands of docs/failover.md, while people register."""
    fail_over, copy, other_roles = commands(ROOT / "docs" / "failover.md")["Staging: by hand"]
    k, roles, *_ = fail_over.splitlines()
    poolers = poolers_and_restarts()
    joined: set[str] = set()
    other_answers: set[int] = set()

    def register(stopped: threading.Event) -> None:
        while not stopped.is_set():
            address = new_address()
            status, _, _ = call("POST", USERS, {"email": address, "password": PASSWORD})
            if status == 202:
                joined.add(address)
            else:
                other_answers.add(status)
            stopped.wait(1)

    def go(chosen: str, promoted: str) -> None:
        with until_stopped(register):
            before = len(joined)
            wait_for(lambda: len(joined) > before, seconds=30)
            shell(fail_over.replace(roles, chosen))
            known, started = len(joined), time.monotonic()
            wait_for(lambda: len(joined) > known, seconds=60)
            print(f"{promoted} is the primary; the first registration after {time.monotonic() - started:.1f} s")
            shell(f"{k}\n{chosen}\n{copy}")
            known = len(joined)
            wait_for(lambda: len(joined) > known, seconds=30)
        assert other_answers <= {429, 503, 504}
        assert joined <= set(on(promoted, "SELECT canonical_email FROM account").splitlines())

    go(roles, "postgres-replica-0")
    go(other_roles.strip(), "postgres-0")
    assert poolers_and_restarts() == poolers


def poolers_and_restarts() -> str:
    shown = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount},{end}"
    return namespaced("get", "pods", "-l", "app in (pgbouncer, pgbouncer-replica)", "-o", shown)


@in_production
def test_a_primary_that_is_gone_is_replaced_by_a_replica(credentials: dict[str, str]) -> None:
    assert call("POST", f"{USERS}/login", credentials)[0] == 200
    before = primary()
    started = time.monotonic()
    namespaced("delete", "pod", before, "--grace-period=0", "--force")
    wait_for(lambda: primary() != before, seconds=120)
    print(f"\nafter {time.monotonic() - started:.0f} s {primary()} is the primary in place of {before}")
    wait_for(lambda: call("POST", f"{USERS}/login", credentials)[0] == 200, seconds=120)
    print(f"users log in again after {time.monotonic() - started:.0f} s")
    wait_for(lambda: namespaced("get", "cluster", "postgres", "-o", "jsonpath={.status.readyInstances}") == "3", 300)
    print(f"all three instances are ready again after {time.monotonic() - started:.0f} s")


def primary() -> str:
    """The pod of CloudNativePG's primary."""
    return namespaced("get", "cluster", "postgres", "-o", "jsonpath={.status.currentPrimary}")


def test_the_nodes_of_redis_form_one_cluster_and_heal_it(credentials: dict[str, str]) -> None:
    wait_for(whole, seconds=120)
    namespaced("delete", "pod", "-l", "app=redis", "--wait=true")
    started = time.monotonic()
    wait_for(whole, seconds=180)
    print(f"\nall nodes of Redis deleted at once: whole again after {time.monotonic() - started:.0f} s")
    wait_for(lambda: call("POST", f"{USERS}/login", credentials)[0] == 200, seconds=30)


def whole() -> bool:
    """Whether each node knows all others, and that all slots are served."""
    found = json.loads(namespaced("get", "pods", "-l", "app=redis", "-o", "json"))["items"]
    names = [pod["metadata"]["name"] for pod in found if pod["status"]["phase"] == "Running"]
    if len(names) != NODES or not all(pod["status"]["containerStatuses"][0]["ready"] for pod in found):
        return False
    states = [namespaced("exec", name, "--", "redis-cli", "cluster", "info") for name in names]
    return all("cluster_state:ok" in state and f"cluster_known_nodes:{NODES}" in state for state in states)
