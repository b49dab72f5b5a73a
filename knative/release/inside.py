"""Checks that a release runs in the cluster, in a pod of its image, before it gets any traffic.

python -m knative.release.inside settings     prints problems of the settings
FUNCTION_URL=http://next-{service}.NAMESPACE.svc.cluster.local python -m knative.release.inside smoke login ...
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import urllib3

from shared.framework.registry import HTTP_FUNCTIONS, HttpFunction, load_all, uses
from shared.runtime.resource_names import resource_name
from shared.runtime.settings import Dependency, InvalidSettings, load

TIMEOUT_SECONDS = 30.0
"""For one request. Long enough for the function's pod to start first."""
READY_SECONDS = 240.0
"""For all functions together to become ready. Network policies take effect for a new pod only after some seconds."""
NAME_SECONDS = 15.0
"""For the name of a function to resolve. DNS caches the absence of a name for a few seconds."""
AT_ONCE = 4
GATEWAY_CREDENTIAL = "GATEWAY_CREDENTIAL"
"""The key that the gateway sends. Only the Job that checks settings gets it."""
UNKNOWN_CREDENTIAL = "the key in the Secret gateway-key is not in GATEWAY_KEY: all clients would share one address"


def problems(environment: Mapping[str, str]) -> list[str]:
    """Return the problems of these settings, for any function, the relay or the dispatcher."""
    needed: set[Dependency] = {"kafka"}
    needed.update(*(uses(function) for function in load_all()))
    try:
        settings_ = load(environment, needed)
    except InvalidSettings as error:
        return list(error.problems)
    sent = environment.get(GATEWAY_CREDENTIAL)
    if sent is not None and sent.encode() not in settings_.gateway_keys:
        return [UNKNOWN_CREDENTIAL]
    return []


def settings() -> None:
    """Print the problems of this environment as JSON."""
    print(json.dumps({"problems": problems(os.environ)}))


def smoke(names: Sequence[str], function_url: str) -> list[str]:
    """Call each function without credentials, which it must refuse. Print each result and return the problems.

    After the first problem it stops waiting for other functions.
    """
    load_all()
    is_over = threading.Event()
    deadline = time.monotonic() + READY_SECONDS

    def call(name: str) -> str:
        base = function_url.format(service=resource_name(name))
        problem = _wait(name, base, is_over, deadline) or ("" if is_over.is_set() else _wrong_answer(name, base))
        if problem:
            is_over.set()
            print(f"FAILED: {name} {problem}", flush=True)
            return f"{name} {problem}"
        # One write, as others print at the same time.
        print(f"{name} {'was not called' if is_over.is_set() else 'answers as it should'}\n", end="", flush=True)
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [problem for problem in pool.map(call, names) if problem]


def _wait(name: str, base: str, is_over: threading.Event, deadline: float) -> str:
    """Wait until a function is ready. Return why it is not, or an empty string, also if waiting was stopped for all."""
    told, unknown_since = "", 0.0
    while not is_over.is_set() and (problem := _not_ready(base)):
        now = time.monotonic()
        unknown_since = (unknown_since or now) if problem == _NO_NAME else 0.0
        if now > deadline or (unknown_since and now - unknown_since > NAME_SECONDS):
            return problem
        if problem != told:
            print(f"waiting: {name} {problem}", flush=True)
            told = problem
        time.sleep(1)
    return ""


_NO_NAME = "cannot be reached: its host name does not exist in the cluster"


def _not_ready(base: str) -> str:
    try:
        ready = urllib3.request("GET", f"{base}/health/ready", timeout=TIMEOUT_SECONDS, retries=False)
    except urllib3.exceptions.NameResolutionError as error:
        is_unknown = isinstance(error.__cause__, socket.gaierror) and error.__cause__.errno == socket.EAI_NONAME
        return _NO_NAME if is_unknown else "cannot be reached: the DNS server does not answer"
    except urllib3.exceptions.HTTPError as error:
        return f"cannot be reached: {type(error).__name__}"
    if ready.status == 200:
        return ""
    return f"is not ready ({ready.status}): {ready.data.decode('utf-8', 'replace')[:200]}"


def _wrong_answer(name: str, base: str) -> str:
    function = HTTP_FUNCTIONS.get(name)
    method, path, expected = _refused(function) if function else ("GET", "/", {405})
    body: dict[str, str] | None = {} if method != "GET" else None
    try:
        answer = urllib3.request(method, f"{base}{path}", json=body, timeout=TIMEOUT_SECONDS, retries=False)
    except urllib3.exceptions.HTTPError as error:
        return f"does not answer {method} {path}: {type(error).__name__}"
    if answer.status not in expected:
        return f"answers {method} {path} with {answer.status} instead of {' or '.join(map(str, sorted(expected)))}"
    return ""


def _refused(function: HttpFunction) -> tuple[str, str, set[int]]:
    """Return a call that changes nothing: method, path and the acceptable statuses."""
    if function.path == "/*":
        return "GET", "/nowhere", {404, 429}
    path = function.path
    for parameter in [part for part in path.split("/") if part.startswith("{")]:
        path = path.replace(parameter, str(UUID(int=0)))
    # Calls that bypass the gateway, like these, share one rate limit, which may be used up: 429.
    if function.authenticated:
        return function.method, path, {401, 429}
    # The body is missing or empty: functions that need one refuse the call, the others answer.
    return function.method, path, {function.status, 400, 401, 422, 429}


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
