"""What a release lets a pod of its own image do in the cluster, before users meet it.

python -m knative.release.inside settings     prints what is wrong with the settings
FUNCTION_URL=http://next-{service}.NAMESPACE.svc.cluster.local python -m knative.release.inside smoke login ...
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import urllib3

from shared.registry import HTTP_FUNCTIONS, HttpFunction, load_all, uses
from shared.settings import Dependency, InvalidSettings, load

TIMEOUT_SECONDS = 30.0
"""Of a function whose pod may have to start first."""
READY_SECONDS = 60.0
"""For a pod that has gone meanwhile to start again, and to reach its servers: a NetworkPolicy may let it late."""
AT_ONCE = 4


def problems(environment: Mapping[str, str]) -> list[str]:
    """What is wrong with these settings, for any function, the relay or the dispatcher."""
    needed: set[Dependency] = {"kafka"}
    needed.update(*(uses(function) for function in load_all()))
    try:
        load(environment, needed)
    except InvalidSettings as error:
        return list(error.problems)
    return []


def settings() -> None:
    """Prints, as JSON, the problems of this environment."""
    print(json.dumps({"problems": problems(os.environ)}))


def smoke(names: Sequence[str], function_url: str) -> list[str]:
    """Calls each of these functions without credentials, where it must refuse. Returns what is wrong."""
    load_all()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [problem for problem in pool.map(lambda name: _try(name, function_url), names) if problem]


def _try(name: str, function_url: str) -> str | None:
    base = function_url.format(service=name.replace("_", "-"))
    function = HTTP_FUNCTIONS.get(name)
    method, path, expected = _refused(function) if function else ("GET", "/", {405})
    deadline = time.monotonic() + READY_SECONDS
    while problem := _not_ready(base):
        if time.monotonic() > deadline:
            return f"{name} {problem}"
        time.sleep(1)
    try:
        answer = urllib3.request(
            method, f"{base}{path}", json={} if method != "GET" else None, timeout=TIMEOUT_SECONDS, retries=False
        )
    except urllib3.exceptions.HTTPError as error:
        return f"{name} does not answer {method} {path}: {type(error).__name__}"
    if answer.status not in expected:
        return (
            f"{name} answers {method} {path} with {answer.status} in place of {' or '.join(map(str, sorted(expected)))}"
        )
    return None


def _not_ready(base: str) -> str:
    try:
        ready = urllib3.request("GET", f"{base}/health/ready", timeout=TIMEOUT_SECONDS, retries=False)
    except urllib3.exceptions.HTTPError as error:
        return f"cannot be reached: {type(error).__name__}"
    return (
        "" if ready.status == 200 else f"is not ready ({ready.status}): {ready.data.decode('utf-8', 'replace')[:200]}"
    )


def _refused(function: HttpFunction) -> tuple[str, str, set[int]]:
    """A call that changes nothing: method, path, and the statuses that may answer it."""
    if function.path == "/*":
        return "GET", "/nowhere", {404}
    path = function.path
    for parameter in [part for part in path.split("/") if part.startswith("{")]:
        path = path.replace(parameter, str(UUID(int=0)))
    if function.authenticated:
        return function.method, path, {401}
    # Without a body, or with an empty one: what takes neither says so, the others answer.
    return function.method, path, {function.status, 400, 401, 422}


def main() -> None:
    if sys.argv[1] == "settings":
        settings()
        return
    names = sys.argv[2:]
    if wrong := smoke(names, os.environ["FUNCTION_URL"]):
        sys.exit("\n".join(wrong))
    print(f"{len(names)} functions answer as they should")


if __name__ == "__main__":
    main()
