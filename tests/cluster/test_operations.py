"""Every command of docs/operations.md, in its order, on development; each section has the effect that it promises."""

import json
import re
import secrets
import time

import pytest

from knative.keys import new_backup_key, recipient_of
from tests.cluster.conftest import (
    ENVIRONMENT,
    PROMETHEUS_URL,
    USERS,
    call,
    join,
    mailed_token,
    namespaced,
    new_address,
    on,
)
from tests.cluster.documents import commands, shell
from tests.cluster.test_release import FEW, SCALE_DOWN_DELAY, TAG, overlay, releases, shares
from tests.conftest import PASSWORD, ROOT, wait_for

PAGE = commands(ROOT / "docs" / "operations.md")
SECRETS = ROOT / "knative" / "overlays" / "development" / "data"
IDENTITY = SECRETS / "backup-identity.txt"
RAN: set[str] = set()
GO_SOON = {
    "target": {"group": "serving.knative.dev", "kind": "Service"},
    "patch": json.dumps([{"op": "replace", "path": SCALE_DOWN_DELAY, "value": "0s"}]),
}
"""As in development itself: nobody calls here who would need pods of a release before they have its traffic."""

pytestmark = pytest.mark.skipif(
    not PROMETHEUS_URL or ENVIRONMENT != "development",
    reason="NO PROMETHEUS_URL, or not development: the commands of docs/operations.md were not run",
)


def run(block: str) -> str:
    """What a block says, after those that name the environment: a small one here, whose deployments are quick."""
    RAN.add(block)
    (names,) = PAGE["Operations"]
    environment = overlay("operated", GO_SOON)
    own = f"ENVIRONMENT={environment} TAG={TAG} SECRETS={SECRETS} IDENTITY={IDENTITY}\n"
    own += f"export PROMETHEUS_URL={PROMETHEUS_URL}\n"
    # A minute between two shares of the traffic is for users; nobody calls here.
    return shell(names + own + block.replace("deploy $TAG", "deploy $TAG --hold 5"))


def has_all_of_the_traffic(release: int) -> bool:
    """What the environment does not have was not released."""
    return {name: revisions for name, revisions in shares().items() if name in FEW} == {
        name: {f"r{release}"} for name in FEW
    }


@pytest.fixture(scope="module", autouse=True)
def a_release_before(deployed: None) -> None:
    _, deploy, *_ = PAGE["Deploy"][0].splitlines()
    run(deploy)
    RAN.clear()


def test_deploy() -> None:
    before = releases()[0]["release"]
    said = run(*PAGE["Deploy"])
    newest = releases()[0]
    assert (newest["release"], newest["state"]) == (before + 1, "complete")
    assert has_all_of_the_traffic(before + 1)
    assert "get_profile" in said


def test_roll_back() -> None:
    live = releases()[0]["release"]
    run(*PAGE["Roll back"])
    assert has_all_of_the_traffic(live - 1)


def test_rotate_the_signing_keys() -> None:
    credentials, token = join()
    (step,) = PAGE["Rotate the signing keys"]
    rotate, *_ = step.splitlines()  # the deployment after it is a line of its own
    (old,) = verifying_keys()
    run(step)
    known = verifying_keys()
    assert known[0] == old
    assert len(known) == 2
    wait_for(lambda: pods_without_traffic() == 0, seconds=300)  # of releases that nobody goes back to
    run(step)
    assert verifying_keys() == known[::-1]
    assert call("GET", f"{USERS}/me", Authorization=f"Bearer {token}")[0] == 200
    assert call("POST", f"{USERS}/login", credentials)[0] == 200
    wait_for(lambda: pods_without_traffic() == 0, seconds=300)
    assert "the last token of it expires at" in run(rotate.removesuffix("&&"))


def pods_without_traffic() -> int:
    """How many pods there are of revisions that no traffic and no tag leads to."""
    services = json.loads(namespaced("get", "ksvc", "-o", "json"))["items"]
    wanted = {target["revisionName"] for one in services for target in one["status"]["traffic"]}
    found = json.loads(namespaced("get", "pods", "-l", "app=user-service", "-o", "json"))["items"]
    return sum(pod["metadata"]["labels"]["serving.knative.dev/revision"] not in wanted for pod in found)


def verifying_keys() -> list[str]:
    """Their ids; the first signs."""
    return [key["kid"] for key in call("GET", "/.well-known/jwks.json")[1]["keys"]]


def test_rotate_other_secrets() -> None:
    of_a_provider, of_the_database, of_the_backups = PAGE["Rotate other secrets"]
    put("secrets.env", "EMAIL_API_KEY", secrets.token_hex(32))
    run(of_a_provider)
    namespaced("rollout", "restart", "deployment/sandbox")  # the provider learns of it, too
    namespaced("rollout", "status", "deployment/sandbox", "--timeout=120s")
    join()

    stored = "SELECT rolpassword FROM pg_authid WHERE rolname = 'aegis_functions'"
    before = on("postgres-0", stored)
    put("secrets.env", "DB_PASSWORD", secrets.token_hex(16))
    run(of_the_database)
    assert on("postgres-0", stored) != before
    newcomer = {"email": new_address(), "password": PASSWORD}
    started = time.monotonic()
    wait_for(lambda: call("POST", USERS, newcomer)[0] == 202, seconds=60)
    print(f"the first registration {time.monotonic() - started:.1f} s after the last command")
    assert mailed_token(newcomer["email"], seconds=120)

    identity = new_backup_key()
    put("backup.env", "BACKUP_RECIPIENTS", recipient_of(identity))
    with IDENTITY.open("a") as kept:
        kept.write(f"{identity}\n")
    assert "read back and found good" in run(of_the_backups)


def test_rotate_the_gateways_key() -> None:
    (step,) = PAGE["Rotate the gateway's key"]
    (old,) = [line for line in (SECRETS / "gateway.env").read_text().splitlines() if line.startswith("credential=")]
    old, new = old.removeprefix("credential="), secrets.token_hex(32)
    sent = []
    for keys in (f"{old},{new}", f"{new},{old}", new):
        put("secrets.env", "GATEWAY_KEY", keys)
        run(step)
        sent.append((SECRETS / "gateway.env").read_text().strip())
        # Who comes from the cluster's own network shares no limit; all clients would, if no function took the key.
        status, _, headers = call("GET", f"{USERS}/me")
        assert (status, headers["RateLimit"]) == (401, None)
    assert sent == [f"credential={old}", f"credential={new}", f"credential={new}"]


def put(file: str, name: str, value: str) -> None:
    """What the operator does in an editor."""
    path = SECRETS / file
    text, count = re.subn(f"^{name}=.*$", f"{name}={value}", path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)


def test_scale() -> None:
    look, change = PAGE["Scale"]
    credentials, _ = join()
    assert call("POST", f"{USERS}/login", credentials)[0] == 200
    wait_for(lambda: "login" in run(look), seconds=60)
    run(change)
    (live,) = (f"login-{name}" for name in shares()["login"])
    bounds = json.loads(namespaced("get", "podautoscaler", live, "-o", "json"))["metadata"]["annotations"]
    assert bounds["autoscaling.knative.dev/max-scale"] == "15"


def test_back_up() -> None:
    said = run(*PAGE["Back up"])
    assert "read back and found good" in said
    assert "hours old and good" in said


def test_restore() -> None:
    credentials, token = join()
    (chosen,) = re.findall(r"^(\d+T\d+Z): .* found good", shell("./aegis backup --in-cluster"), flags=re.MULTILINE)
    newcomer, _ = join()
    (block,) = PAGE["Restore"]
    said = run(re.sub(r"(?m)^NAME=.*$", f"NAME={chosen}", block))
    RAN.add(block)
    assert f"Restored {chosen}." in said
    assert call("POST", f"{USERS}/login", newcomer)[0] == 401
    wait_for(lambda: call("GET", f"{USERS}/me", Authorization=f"Bearer {token}")[0] == 401, seconds=90)
    assert call("POST", f"{USERS}/login", credentials)[0] == 200


def test_read_the_alerts() -> None:
    firing, more = PAGE["Read the alerts"]
    run(firing)
    said = run(more)
    assert "get_profile" in said
    assert "There are no dead letters" in said


def test_every_command_of_the_page_was_run() -> None:
    assert {block for heading, blocks in PAGE.items() if heading != "Operations" for block in blocks} <= RAN
