"""What a release lets a pod of its own image do in the cluster, before users meet it.

python -m knative.release.inside settings     prints what is wrong with the settings
FUNCTION_URL=http://next-{service}.NAMESPACE.svc.cluster.local python -m knative.release.inside smoke login ...
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import urllib3

from shared.registry import HTTP_FUNCTIONS, HttpFunction, load_all, uses
from shared.settings import Dependency, InvalidSettings, load

TIMEOUT_SECONDS = 30.0
"""Of one request to a function whose pod may have to start first."""
READY_SECONDS = 120.0
"""For all functions together to be ready: a NetworkPolicy lets a new pod through to its servers some seconds late."""
NAME_SECONDS = 15.0
"""For the name of a function to be known: DNS remembers for a few seconds that there was none."""
HASTY_SECONDS = 3.0
"""Of one request after another function has failed: the release is off, and the rest is told for completeness."""
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
    """Calls each function without credentials, which it must refuse. Prints how each went; returns what is wrong.

    After the first problem it waits for nothing any more, and only tells what else is wrong.
    """
    load_all()
    has_failed = threading.Event()
    started = time.monotonic()

    def patience(seconds: float) -> bool:
        return not has_failed.is_set() and time.monotonic() - started < seconds

    def call(name: str) -> str | None:
        problem = _problem(name, function_url.format(service=name.replace("_", "-")), patience)
        print(f"FAILED: {name} {problem}" if problem else f"{name} answers as it should", flush=True)
        if not problem:
            return None
        has_failed.set()
        return f"{name} {problem}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [problem for problem in pool.map(call, names) if problem]


def _problem(name: str, base: str, patience: Callable[[float], bool]) -> str:
    """What is wrong with a function, once that cannot get better within the time for it; empty when nothing is."""
    told = ""
    while problem := _not_ready(base, patience):
        if not patience(NAME_SECONDS if problem is _NO_NAME else READY_SECONDS):
            return problem
        if problem != told:
            print(f"waiting: {name} {problem}", flush=True)
            told = problem
        time.sleep(1)
    function = HTTP_FUNCTIONS.get(name)
    method, path, expected = _refused(function) if function else ("GET", "/", {405})
    body: dict[str, str] | None = {} if method != "GET" else None
    try:
        answer = urllib3.request(method, f"{base}{path}", json=body, timeout=_timeout(patience), retries=False)
    except urllib3.exceptions.HTTPError as error:
        return f"does not answer {method} {path}: {type(error).__name__}"
    if answer.status not in expected:
        return f"answers {method} {path} with {answer.status} instead of {' or '.join(map(str, sorted(expected)))}"
    return ""


_NO_NAME = "cannot be reached: there is no such host in the cluster"


def _not_ready(base: str, patience: Callable[[float], bool]) -> str:
    try:
        ready = urllib3.request("GET", f"{base}/health/ready", timeout=_timeout(patience), retries=False)
    except urllib3.exceptions.NameResolutionError:
        return _NO_NAME
    except urllib3.exceptions.HTTPError as error:
        return f"cannot be reached: {type(error).__name__}"
    if ready.status == 200:
        return ""
    return f"is not ready ({ready.status}): {ready.data.decode('utf-8', 'replace')[:200]}"


def _timeout(patience: Callable[[float], bool]) -> float:
    return TIMEOUT_SECONDS if patience(READY_SECONDS) else HASTY_SECONDS


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
