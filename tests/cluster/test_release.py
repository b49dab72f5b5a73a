"""`aegis deploy` and `aegis rollback` on a real Knative, with good releases and bad ones."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import conftest
from tests.cluster.conftest import HOST, IMAGE, NAMESPACE, get_profile, kubectl, load, namespaced
from tests.conftest import ROOT, wait_for

TAG = IMAGE.rpartition(":")[2]
PROMETHEUS_URL = os.environ.get("PROMETHEUS_URL", "")
OVERLAYS = ROOT / ".local" / "cluster" / "releases"
HOLD = "20"
SOME = 300
"""Requests, after which a load has settled."""
FEW = (
    *("fallback", "get-profile", "jwks", "keep-dead-letter", "list-sessions", "login", "logout", "verify-business"),
    *("refresh-token", "register", "send-email", "update-profile", "verify-email"),
)
"""The functions that the load calls, and what they need: as many as a node of two cores can have twice."""

pytestmark = pytest.mark.skipif(not PROMETHEUS_URL, reason="NO PROMETHEUS_URL: releases were not tested")

Patch = dict[str, Any]
SCALE_DOWN_DELAY = "/spec/template/metadata/annotations/autoscaling.knative.dev~1scale-down-delay"
AS_RELEASER: dict[str, str] = {}
"""Whose kubeconfig the commands take."""

# What a bad release does before its server starts. Calls without credentials stay as they are: the smoke test passes.
FAILS = "import shared.redis.cache; shared.redis.cache.get = lambda *keys: 1 / 0"
IS_SLOW = (
    "import time, shared.redis.cache as cache; get = cache.get; cache.get = lambda *keys: time.sleep(2) or get(*keys)"
)
DOES_NOT_START = "raise SystemExit('this release does not start')"


def overlay(name: str, *patches: Patch, small: bool = True, foundation: tuple[Patch, ...] = ()) -> str:
    """The folder of an environment made of the development overlay, these patches, and the alert rules."""
    source = ROOT / "knative" / "overlays" / "development"
    for part, own in (("migration", foundation), (".", (*(_without_most() if small else ()), *patches, *foundation))):
        folder = OVERLAYS / name / part
        folder.mkdir(parents=True, exist_ok=True)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(source / part, folder)],
            "components": [os.path.relpath(ROOT / "knative/components/monitoring", folder)] if part == "." else [],
            "patches": list(own),
        }
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return str(OVERLAYS / name)


def _without_most() -> list[Patch]:
    few = "|".join(FEW)
    kinds = {"Service": "serving.knative.dev/v1", "HTTPRoute": "gateway.networking.k8s.io/v1"}
    names = [path.stem.replace("_", "-") for path in (ROOT / "knative" / "functions").glob("*.yaml")]
    gone = "|".join(sorted({name for name in names if name != "kustomization"} - set(few.split("|"))))
    # As in production: what starts before it has traffic is still there when it gets it.
    warm = {
        "target": {"group": "serving.knative.dev", "kind": "Service", "name": f"({few})"},
        "patch": json.dumps([{"op": "replace", "path": SCALE_DOWN_DELAY, "value": "300s"}]),
    }
    return [warm] + [
        {
            "target": {"group": version.partition("/")[0], "kind": kind, "name": f"^({gone})$"},
            "patch": json.dumps({"$patch": "delete", "apiVersion": version, "kind": kind, "metadata": {"name": "any"}}),
        }
        for kind, version in kinds.items()
    ]


def started_with(code: str, function: str = "get-profile") -> Patch:
    """Lets a function run this before its server."""
    command = ["python", "-c", f"{code}\nfrom shared.framework.server import main; main()"]
    operation = [{"op": "add", "path": "/spec/template/spec/containers/0/command", "value": command}]
    return {
        "target": {"group": "serving.knative.dev", "kind": "Service", "name": function},
        "patch": json.dumps(operation),
    }


def aegis(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return conftest.aegis(*arguments, **AS_RELEASER | environment)


def deploy(environment: str, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = aegis("deploy", TAG, "--environment", environment, "--hold", HOLD, *more, **variables)
    print(f"\n{done.stderr}{done.stdout}")
    return done


def releases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(aegis("releases", "--json").stdout)
    return found


def shares() -> dict[str, set[str]]:
    """Of each function the revisions that have traffic, without the function's name."""
    return {
        one["metadata"]["name"]: {
            target["revisionName"].removeprefix(one["metadata"]["name"] + "-")
            for target in one["status"]["traffic"]
            if target.get("percent")
        }
        for one in json.loads(namespaced("get", "ksvc", "-o", "json"))["items"]
    }


@pytest.fixture(scope="module", autouse=True)
def with_the_rights_of_a_release_alone(deployed: None) -> Iterator[None]:
    """Lets the commands run as an account that has what knative/base/access gives, and nothing else."""
    kubectl("apply", "-k", str(ROOT / "knative" / "base" / "access"))
    kubectl("delete", "serviceaccount", "releaser", "--namespace", "default", "--ignore-not-found")
    kubectl("create", "serviceaccount", "releaser", "--namespace", "default")
    for namespace in (NAMESPACE, "knative-serving", "kourier-system"):
        binding = ["rolebinding", "releaser", "--namespace", namespace]
        kubectl("delete", *binding, "--ignore-not-found")
        kubectl("create", *binding, "--role=aegis-release", "--serviceaccount=default:releaser")
    told = json.loads(kubectl("config", "view", "--minify", "--flatten", "--raw", "-o", "json"))
    token = kubectl("create", "token", "releaser", "--namespace", "default", "--duration", "3h").strip()
    told["users"] = [{"name": told["contexts"][0]["context"]["user"], "user": {"token": token}}]
    OVERLAYS.mkdir(parents=True, exist_ok=True)
    file = OVERLAYS / "kubeconfig"
    file.write_text(json.dumps(told))
    AS_RELEASER["KUBECONFIG"] = str(file)
    yield
    file.unlink()


@pytest.fixture(scope="module")
def small(deployed: None) -> str:
    """A small environment, with a release in it."""
    environment = overlay("small")
    prepared = conftest.aegis("prepare", "--environment", environment)
    assert prepared.returncode == 0, prepared.stderr
    done = deploy(environment)
    assert done.returncode == 0, done.stderr
    return environment


@contextmanager
def locust(users: int) -> Iterator[Path]:
    """Mixed load as in the load tests, as long as the block runs; the folder then has Locust's own counts."""
    address = namespaced("get", "gateway", "api", "-o", "jsonpath={.status.addresses[0].value}")
    folder = OVERLAYS / "locust"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "locust", "--locustfile", "loadtests/people.py", "--headless", "--only-summary"]
    command += [
        "--users",
        str(users),
        "--spawn-rate",
        "3",
        "--host",
        f"http://{address}",
        "--csv",
        str(folder / "load"),
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"HOST_HEADER": HOST}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield folder
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def counts(folder: Path) -> tuple[int, int, float, str]:
    """Requests, failures, requests a second, and which failures, as Locust has counted them."""
    if not (folder / "load_failures.csv").exists():
        return 0, 0, 0.0, ""
    total = next(row for row in csv.DictReader((folder / "load_stats.csv").open()) if row["Name"] == "Aggregated")
    failures = (folder / "load_failures.csv").read_text()
    return int(total["Request Count"]), int(total["Failure Count"]), float(total["Requests/s"]), failures


def test_a_release_of_all_functions_takes_over_what_kubectl_apply_has_made(deployed: None) -> None:
    assert deploy(overlay("all", small=False)).returncode == 0
    assert {frozenset(one) for one in shares().values()} == {frozenset({f"r{releases()[0]['release']}"})}


def test_a_deployment_and_a_roll_back_under_mixed_load_fail_no_request(small: str) -> None:
    with locust(users=int(os.environ.get("USERS", "30"))) as folder:
        wait_for(lambda: counts(folder)[0] > SOME, seconds=180)
        # Who comes first wakes functions from zero, all at once on a small node: that is not what is tested here.
        early = counts(folder)[1]
        done = deploy(small)
        assert done.returncode == 0, done.stderr
        newest, before = releases()[:2]
        assert (newest["traffic"], before["traffic"]) == ("100 %", "0 %")
        started = time.monotonic()
        back = aegis("rollback")
        print(back.stderr)
        assert back.returncode == 0, back.stderr
        assert releases()[1]["traffic"] == "100 %"
        seconds = re.search(r"after ([0-9.]+) s", back.stderr)
        print(f"rolled back in {time.monotonic() - started:.1f} s, all that comes with it included")
        assert seconds
        sent = counts(folder)[0]
        wait_for(lambda: counts(folder)[0] > sent + SOME, seconds=60)
    requests, failed, rate, failures = counts(folder)
    print(f"{requests} requests, {rate:.1f} a second, {failed} failed, {early} of them before\n{failures}")
    assert failed == early, failures


def test_a_smaller_release_takes_away_what_it_does_not_have(small: str) -> None:
    assert set(shares()) == set(FEW)
    routes = json.loads(namespaced("get", "httproute", "-o", "json"))["items"]
    assert {route["metadata"]["name"] for route in routes} <= {*FEW, "sandbox", "redirect"}


@dataclass(frozen=True)
class Bad:
    """A release that must not come through: what it is made of, and what the command says."""

    name: str
    environment: Callable[[], str]
    says: str
    meets_users: bool = False


MIGRATION_FAILS = {
    "target": {"kind": "Job", "name": "migrate"},
    "patch": json.dumps(
        [
            {
                "op": "replace",
                "path": "/spec/template/spec/containers/0/command",
                "value": ["python", "-c", "raise SystemExit('relation account does not exist')"],
            }
        ]
    ),
}
SETTING_IS_WRONG = {
    "target": {"kind": "Job", "name": "migrate"},
    "patch": json.dumps(
        [{"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": {"name": "THREADS", "value": "no"}}]
    ),
}


@pytest.mark.parametrize(
    "bad",
    [
        Bad("fails", lambda: overlay("fails", started_with(FAILS)), "UserServiceHighErrorRate of get_profile", True),
        Bad("slow", lambda: overlay("slow", started_with(IS_SLOW)), "UserServiceHighLatency of get_profile", True),
        Bad("no start", lambda: overlay("no-start", started_with(DOES_NOT_START)), "this release does not start"),
        Bad(
            "migration", lambda: overlay("migration", foundation=(MIGRATION_FAILS,)), "relation account does not exist"
        ),
        Bad("setting", lambda: overlay("setting", foundation=(SETTING_IS_WRONG,)), "THREADS is not a number"),
    ],
    ids=lambda bad: bad.name,
)
def test_a_bad_release_stops_where_it_should(small: str, bearers: list[dict[str, str]], bad: Bad) -> None:
    before = shares()
    with load(6, get_profile(bearers, pause=0.1)) as running:
        wait_for(lambda: running.statuses[200] > 30, seconds=60)
        done = deploy(bad.environment())
    assert done.returncode == 1
    assert bad.says in done.stderr
    assert shares() == before
    total, failed = running.statuses.total(), sum(running.failed.values())
    print(f"{bad.name}: {total} requests, {failed} failed: {running.failed}")
    if bad.meets_users:
        assert "10 % of the traffic" in done.stderr
        assert "50 % of the traffic" not in done.stderr
    else:
        assert failed == 0
    assert failed <= total / 10


def test_a_tag_that_nobody_has_pushed_changes_nothing(small: str) -> None:
    before = shares(), len(releases())
    done = aegis("deploy", "no-such-tag", "--environment", small)
    assert done.returncode == 1
    assert "Nothing was changed" in done.stderr
    assert "cannot be pulled" in done.stderr
    assert (shares(), len(releases())) == before


def test_of_two_deployments_at_once_one_is_refused(small: str) -> None:
    first = start_deploying(small)
    wait_for(lambda: releases()[0]["state"].startswith("under way"), seconds=60)
    second = deploy(small)
    assert second.returncode == 1
    assert "Another release is under way" in second.stderr
    assert first.wait(300) == 0


@pytest.mark.parametrize(
    "step", ["prepares", "migrates", "starts", "10 % of the traffic", "50 % of the traffic", "100 % of the traffic"]
)
def test_a_command_that_was_killed_is_taken_back_by_the_next_one(small: str, step: str) -> None:
    started = start_deploying(small)
    wait_for(lambda: step in releases()[0]["state"], seconds=240)
    started.kill()
    started.wait()
    killed = releases()[0]["release"]
    done = deploy(small)
    assert done.returncode == 0, done.stderr
    assert f"release {killed} ({TAG})" in done.stderr
    newest = releases()[0]
    assert (newest["state"], newest["traffic"]) == ("complete", "100 %")
    assert {revisions.pop() for revisions in shares().values()} == {f"r{newest['release']}"}


def test_ctrl_c_puts_the_traffic_back(small: str) -> None:
    before = shares()
    started = start_deploying(small)
    wait_for(lambda: "10 %" in releases()[0]["state"], seconds=240)
    started.send_signal(signal.SIGINT)
    assert started.wait(120) == 1
    assert shares() == before


def test_a_roll_back_to_a_named_release_and_forward_again(small: str) -> None:
    live, *older = [one for one in releases() if one["state"] in ("complete", "rolled back")]
    target = older[-1]
    assert aegis("rollback", str(target["release"])).returncode == 0
    assert {frozenset(one) for one in shares().values()} == {frozenset({f"r{target['release']}"})}
    assert aegis("rollback", str(live["release"])).returncode == 0
    assert {frozenset(one) for one in shares().values()} == {frozenset({f"r{live['release']}"})}
    refused = aegis("rollback", "999")
    assert refused.returncode == 1
    assert "Nothing was changed" in refused.stderr


def test_status_shows_each_function(small: str) -> None:
    shown = {one["function"]: one for one in json.loads(aegis("status", "--json").stdout)}
    assert set(shown) == {name.replace("-", "_") for name in FEW}
    assert all(one["ready"] and sum(one["traffic"].values()) == 100 for one in shown.values())
    assert shown["get_profile"]["url"] == f"GET http://{HOST}/api/v1/users/me"
    assert "get_profile" in aegis("status").stdout


def test_diff_shows_what_a_deployment_would_change_and_no_secret(small: str) -> None:
    assert json.loads(aegis("diff", "--environment", small, "--json").stdout) == {}
    slow = overlay("slow", started_with(IS_SLOW))
    changes = json.loads(aegis("diff", "--environment", slow, "--json").stdout)
    assert set(changes) == {"Service get-profile"}
    assert "time.sleep(2)" in changes["Service get-profile"]
    secret = kubectl("get", "secret", "user-service-secrets", "-n", NAMESPACE, "-o", "jsonpath={.data.DB_PASSWORD}")
    assert secret not in aegis("diff", TAG, "--environment", "development").stdout


def start_deploying(environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "knative.aegis", "deploy", TAG, "--environment", environment, "--hold", HOLD],
        cwd=ROOT,
        env=os.environ | AS_RELEASER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
