"""Replace the key that signs access tokens without logging anyone out: `aegis keys rotate`.

The first key in JWT_SECRET_KEY (a JWK Set, RFC 7517) signs, and all keys verify. A process reads them when it starts,
and processes restart one by one. So all processes must know a key before it signs, and until its last token expires.
Each key has the times of its steps, in seconds since the epoch:

    iat     when it was created
    nbf     when it became the first key
    exp     when its last token expires
"""

import base64
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from knative.data_folder import ENVIRONMENT, LOCK
from knative.keys import new_signing_keys, public_keys
from knative.terminal import Refused, Result
from shared.identity.access_tokens import CLOCK_SKEW_SECONDS, LIFETIME_SECONDS
from shared.runtime.settings import InvalidSettings, load

NAME, LOCAL_NAME = "JWT_SECRET_KEY", "signing_keys"
PUBLIC_NAME = "JWT_PUBLIC_KEYS"
SECRET = "user-service-secrets"  # noqa: S105
TOKEN_SECONDS = LIFETIME_SECONDS + CLOCK_SKEW_SECONDS

EVIDENCE = "kubectl -n aegis-user-service get secrets,pods -o json --show-managed-fields"

Key = dict[str, Any]


class NotYet(Exception):
    """The step is only safe after all processes have read the current keys."""


@dataclass(frozen=True)
class Step:
    keys: list[Key]
    done: str
    next: str


def next_step(keys: list[Key], now: int, since: int | None) -> Step:
    """Return the keys after the next step.

    Args:
        now: seconds since the epoch.
        since: when every process had exactly these keys; None if that is not so or not known.

    Raises:
        NotYet
        Refused: the last token of an old key is still valid.
    """
    signing, *others = keys
    waiting = next((key for key in others if "iat" in key and "nbf" not in key), None)
    if waiting:
        if since is None:
            raise NotYet
        rest = [key for key in keys if key is not waiting]
        return Step(
            [{**waiting, "nbf": now}, *rest],
            f"The key {waiting['kid']} signs after processes are restarted; {signing['kid']} still verifies.",
            f"run this again, to drop {signing['kid']}",
        )
    if not others:
        (made,) = json.loads(new_signing_keys())["keys"]
        return Step(
            [signing, {**made, "iat": now}],
            f"Created the key {made['kid']}. It signs nothing yet; {signing['kid']} still does.",
            f"run this again, to let {made['kid']} sign. If other services verify tokens, first wait until they have "
            "read the new key: docs/tokens.md",
        )
    if any("exp" not in key for key in others) and since is None:
        raise NotYet
    dated = [{"exp": (since or now) + TOKEN_SECONDS, **key} for key in others]
    names = ", ".join(key["kid"] for key in others)
    if (last := max(key["exp"] for key in dated)) <= now:
        return Step([signing], f"Dropped {names}. The rotation is complete.", "")
    if dated == others:
        raise Refused(
            f"Nothing was changed. Tokens of {names} are valid until {_utc(last)}. Run this again after that time."
        )
    return Step(
        [signing, *dated],
        f"No process signs with {names} any more; the last token of it expires at {_utc(last)}.",
        "",
    )


def rotate(file: Path, *, cluster: str | None = None, restarted: bool = False) -> Result:
    """Take the next step in a file of secrets. Return what was done and what comes next.

    Args:
        file: a dotenv file with JWT_SECRET_KEY, or the secrets.json of a data folder.
        cluster: a file with the output of EVIDENCE; - for standard input.
        restarted: the operator confirms that all processes were restarted after the last step.

    Raises:
        Refused: nothing was changed.
    """
    file = file.resolve()
    if not file.is_file():
        raise Refused(
            f"Nothing was changed. There is no file {file}.\n"
            "make up writes the secrets of a data folder (DATA_DIR); make secrets writes those of a cluster (--file)."
        )
    is_local = file.suffix == ".json"
    with _held(file.parent):
        content = file.read_text()
        keys = _keys(file, _value_in(content, is_local))
        now = int(time.time())
        if is_local and not restarted:
            since = _since_start(file.parent, keys, now)
        elif cluster:
            _check_cluster(sys.stdin.read() if cluster == "-" else Path(cluster).read_text(), keys)
            since = now
        else:
            since = now if restarted else None
        try:
            step = next_step(keys, now, since)
        except NotYet:
            raise Refused(_not_yet(file, is_local)) from None
        _write(file, _with_value(content, is_local, json.dumps({"keys": step.keys})))
    told = {
        "done": step.done,
        "next": _next(step, is_local),
        "keys": [{name: key[name] for name in ("kid", "iat", "nbf", "exp") if name in key} for key in step.keys],
    }
    return Result("\n".join([step.done, _next(step, is_local)]), told)


def _next(step: Step, is_local: bool) -> str:
    if not step.next and len(step.keys) > 1:
        apply = "" if is_local else "apply the file, and "
        return f"Next: {apply}run this again after that time, to drop it. No restart is needed before that."
    start = "start make up again" if is_local else "apply the file, restart all processes (see --help)"
    return f"Next: {start}{', then ' * bool(step.next)}{step.next}."


def _not_yet(file: Path, is_local: bool) -> str:
    if is_local:
        return (
            "Nothing was changed. The running service has not read the keys of the last step and would reject tokens.\n"
            "Start make up again, then repeat the command."
        )
    return (
        "Nothing was changed. This step is only safe after all processes have read the keys of the last one, "
        f"and the file does not show that.\nIn a cluster: {EVIDENCE} | aegis keys rotate --file {file} --cluster -\n"
        "Elsewhere: restart all processes, then pass --restarted."
    )


def _keys(file: Path, value: str | None) -> list[Key]:
    if not value:
        raise Refused(f"Nothing was changed. {file} has no {NAME}. Pass the file that make secrets or make up wrote.")
    try:
        load({NAME: value})
    except InvalidSettings as error:
        raise Refused(f"Nothing was changed. In {file}: {error}.") from None
    keys: list[Key] = json.loads(value)["keys"]
    return keys


def _value_in(content: str, is_json: bool) -> str | None:
    if is_json:
        value = json.loads(content or "{}").get(LOCAL_NAME)
        return str(value) if value else None
    lines = [line for line in content.splitlines() if line.startswith(f"{NAME}=")]
    return lines[-1].partition("=")[2] if lines else None


def _with_value(content: str, is_json: bool, value: str) -> str:
    if is_json:
        return json.dumps({**json.loads(content), LOCAL_NAME: value}, indent=1)
    # Add the public keys even if the file is older than that setting.
    lines = []
    for line in content.splitlines():
        if line.startswith(f"{NAME}="):
            lines += [f"{NAME}={value}", f"{PUBLIC_NAME}={public_keys(value)}"]
        elif not line.startswith(f"{PUBLIC_NAME}="):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _since_start(data: Path, keys: list[Key], now: int) -> int | None:
    """Return since when the local service has had these keys. If it is stopped: now, as it reads them at its start."""
    environment = data / ENVIRONMENT
    with (data / LOCK).open("a+") as lock:
        try:
            # Held by make up from before it reads the keys until all of its processes have ended.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            try:
                started, read = int(environment.stat().st_mtime), json.loads(environment.read_text())[NAME]
            except FileNotFoundError:
                raise Refused(
                    "Nothing was changed. The service is starting or stopping. Try again in a moment."
                ) from None
            return started if json.loads(read)["keys"] == keys else None
        return now


def _check_cluster(evidence: str, keys: list[Key]) -> None:
    """Check that the cluster has these keys and that every pod has read them.

    Raises:
        Refused
    """
    try:
        items = json.loads(evidence)["items"]
        secret = next(item for item in items if (item["kind"], item["metadata"]["name"]) == ("Secret", SECRET))
        applied = json.loads(base64.b64decode(secret["data"][NAME]))["keys"]
        changed = max(_seconds(entry["time"]) for entry in secret["metadata"]["managedFields"])
        # Relay, dispatcher and servers neither sign nor verify tokens: only pods of functions count.
        pods = {
            item["metadata"]["name"]: item["status"].get("startTime")
            for item in items
            if item["kind"] == "Pod" and "serving.knative.dev/revision" in item["metadata"].get("labels", {})
        }
    except (ValueError, KeyError, TypeError, StopIteration):
        raise Refused(
            f"Nothing was changed. The input of --cluster has no Secret {SECRET} or no pods. "
            f"It must be the output of:\n{EVIDENCE}"
        ) from None
    if applied != keys:
        raise Refused(
            f"Nothing was changed. The keys in the Secret {SECRET} differ from the file. Apply the file and roll out."
        )
    # A pod without a start time will read the current Secret.
    if old := [name for name, start in pods.items() if start and _seconds(start) <= changed]:
        raise Refused(
            f"Nothing was changed. {len(old)} pods are older than the last change of the Secret {SECRET}, such as "
            f"{old[0]}.\nRoll out (see --help), wait until they are gone, then repeat the command."
        )


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder, so that a second command waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, content: str) -> None:
    """Replace a file atomically, readable only by its owner."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as unfinished:
        try:
            os.fchown(unfinished.fileno(), file.stat().st_uid, -1)
            unfinished.write(content)
            unfinished.flush()
            os.fsync(unfinished.fileno())
            os.replace(unfinished.name, file)  # noqa: PTH105
        except BaseException:
            Path(unfinished.name).unlink()
            raise


def _seconds(time_: str) -> int:
    return int(datetime.fromisoformat(time_).timestamp())


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
