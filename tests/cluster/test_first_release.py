"""The README's way from an empty cluster to a running service, and releases that add and remove a function.

It begins where a newcomer does, with a cluster that never had the service, so it deploys nothing beforehand, and takes
the namespace away again.
"""

import json
import os
import re
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import (
    ENVIRONMENT,
    NAMESPACE,
    USERS,
    call,
    join,
    kubectl,
    namespaced,
    refuse_unless_ready,
)
from tests.cluster.documents import commands, shell
from tests.conftest import ROOT, wait_for

pytestmark = pytest.mark.skipif(ENVIRONMENT != "development", reason="the README deploys development")

README = commands(ROOT / "README.md")
OVERLAY = ROOT / ".local" / "cluster" / "without-logout"
LIVE = re.compile(r"^ *(\d+) s  release (\d+) \(dev\) is live$", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[None]:
    """In place of the deployment that other tests find: an empty cluster before, and none of ours after."""
    refuse_unless_ready()
    if exists("namespace", NAMESPACE):
        pytest.fail(f"This begins with an empty cluster. To try it: kubectl delete namespace {NAMESPACE}")
    yield
    kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")


def test_before_the_first_release_each_command_says_that_there_is_none(deployed: None) -> None:
    assert shell("./aegis status").strip() == "No function is deployed in this cluster."
    assert shell("./aegis releases").strip() == "No release has been deployed with aegis deploy."
    assert "No release has been deployed" in shell("! ./aegis rollback")
    shell("make secrets")
    changes = json.loads(shell("./aegis diff dev --environment development --json"))
    assert "+kind: Service" in changes["Service login"]
    assert not [name for name, change in changes.items() if "cannot be applied" in change]


def test_a_first_release_whose_image_is_missing_ends_before_anything_serves(deployed: None) -> None:
    said = shell("! ./aegis deploy no-such-tag --environment development --no-gate")
    assert "aegis prepare --environment development" in said
    shell("./aegis prepare --environment development")
    said = shell("! ./aegis deploy no-such-tag --environment development --no-gate")
    assert "its image cannot be pulled" in said
    assert "Nothing was changed." in said
    kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")


@pytest.fixture(scope="module")
def first(deployed: None) -> str:
    """What the README's commands print on the empty cluster."""
    (block,) = [block for block in README["On a cluster"] if "./aegis deploy" in block]
    said = ""
    for line in block.splitlines():
        said += shell(line)
    return said


def exists(kind: str, name: str, *options: str) -> bool:
    return bool(kubectl("get", kind, name, "--ignore-not-found", "-o", "name", *options).strip())


def live(said: str) -> tuple[int, int]:
    """The seconds that a deployment took, and its number."""
    found = LIVE.search(said)
    assert found, said
    print(f"release {found[2]} of all functions was live after {found[1]} s")
    return int(found[1]), int(found[2])


def deploy(environment: str) -> str:
    return shell(f"./aegis deploy dev --environment {environment} --no-gate")


def test_the_commands_of_the_readme_deploy_the_service_to_an_empty_cluster(first: str) -> None:
    assert live(first)[1] == 1
    assert "get_profile answers as it should" in smoke_log(1)
    _, access_token = join()
    assert call("GET", f"{USERS}/me", Authorization=f"Bearer {access_token}")[0] == 200


def test_a_second_release_takes_over_from_the_first(first: str) -> None:
    assert live(deploy("development"))[1] == 2
    services = json.loads(namespaced("get", "ksvc", "-o", "json"))["items"]
    shares = {one["metadata"]["name"]: one["status"]["traffic"] for one in services}
    for name, targets in shares.items():
        assert {one["revisionName"] for one in targets if one.get("percent")} == {f"{name}-r2"}


def test_a_release_without_a_function_takes_it_away(first: str) -> None:
    OVERLAY.mkdir(parents=True, exist_ok=True)
    for part in ("migration", "."):
        folder = OVERLAY / part
        folder.mkdir(exist_ok=True)
        source = ROOT / "knative" / "overlays" / "development" / part
        kustomization = {
            "resources": [os.path.relpath(source, folder)],
            "patches": without_logout() if part == "." else [],
        }
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    live(deploy(os.path.relpath(OVERLAY, ROOT)))
    assert not exists("ksvc", "logout", "--namespace", NAMESPACE)
    _, access_token = join()
    logout = {"Authorization": f"Bearer {access_token}"}
    wait_for(lambda: call("POST", f"{USERS}/logout", **logout)[0] in (404, 405), seconds=60)
    assert call("GET", f"{USERS}/me", **logout)[0] == 200


def test_a_release_with_a_function_that_the_one_before_did_not_have_adds_it(first: str) -> None:
    _, number = live(deploy("development"))
    assert "logout answers as it should" in smoke_log(number)
    _, access_token = join()
    logout = {"Authorization": f"Bearer {access_token}"}
    wait_for(lambda: call("POST", f"{USERS}/logout", **logout)[0] == 204, seconds=60)
    assert call("GET", f"{USERS}/me", **logout)[0] == 401
    (target,) = json.loads(namespaced("get", "ksvc", "logout", "-o", "json"))["spec"]["traffic"]
    assert "tag" not in target
    assert target["percent"] == 100


def without_logout() -> list[dict[str, object]]:
    kinds = {"Service": "serving.knative.dev/v1", "HTTPRoute": "gateway.networking.k8s.io/v1"}
    return [
        {
            "target": {"group": version.partition("/")[0], "kind": kind, "name": "^logout$"},
            "patch": json.dumps({"$patch": "delete", "apiVersion": version, "kind": kind, "metadata": {"name": "any"}}),
        }
        for kind, version in kinds.items()
    ]


def smoke_log(number: int) -> str:
    return namespaced("logs", f"job/smoke-r{number}")
