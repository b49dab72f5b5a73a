"""A Kubernetes API server that keeps what it is given, with controllers that are done at once: for `aegis deploy`."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from knative.release.gateway import CALLS

Object = dict[str, Any]
LOGS = {"check": '{"problems": []}', "migrate": '{"schema": "0001"}', "smoke": "all answer"}
"""What the Jobs of a release print, by the start of their names."""


class API(ThreadingHTTPServer):
    """
    Attributes:
        objects: what there is, by kind and name.
        watch: is called after each change.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, kinds: dict[tuple[str, str], str], watch: Callable[["API"], None]) -> None:
        """
        Args:
            kinds: of each apiVersion and plural the kind.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kinds = kinds
        self.watch = watch
        self.objects: dict[tuple[str, str], Object] = {}
        self.refuses: Callable[[Object], str] = lambda _: ""
        """Why the gateway does not take a route."""
        self.lock = threading.Lock()

    def of_kind(self, kind: str) -> dict[str, Object]:
        return {name: one for (own, name), one in self.objects.items() if own == kind}

    def put(self, kind: str, name: str, changes: Object) -> Object:
        before = self.objects.get((kind, name), {"metadata": {"name": name, "generation": 0}})
        one = _merged(before, changes)
        one["metadata"]["resourceVersion"] = "1"
        if one.get("spec") != before.get("spec"):
            one["metadata"]["generation"] += 1
        self.objects[kind, name] = one
        self._control(kind, one)
        self.watch(self)
        return one

    def _control(self, kind: str, one: Object) -> None:
        """What Kubernetes, Knative and the gateway would do."""
        generation = one["metadata"]["generation"]
        status: Object = {"observedGeneration": generation}
        ready = {"status": "True", "observedGeneration": generation}
        match kind:
            case "Job":
                status["succeeded"] = 1
                name = one["metadata"]["name"]
                self.objects["Pod", name] = {
                    "metadata": {"name": name, "creationTimestamp": "1", "labels": {"job-name": name}},
                    "spec": {"containers": [{"name": "only"}]},
                    "status": {"containerStatuses": [{"containerID": "1", "state": {}}]},
                }
            case "Deployment" | "StatefulSet":
                count = one["spec"].get("replicas", 1)
                status |= dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas"), count)
            case "Knative":
                template = one["spec"]["template"]
                name = template["metadata"]["name"]
                self.objects.setdefault(
                    ("Revision", name),
                    {"metadata": template["metadata"], "spec": template["spec"]}
                    | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}},
                )
                status["traffic"] = one["spec"].get("traffic", [])
                status["conditions"] = [ready | {"type": "RoutesReady"}]
            case "HTTPRoute":
                why = self.refuses(one)
                accepted = ready | {"type": "Accepted", "status": "False" if why else "True", "message": why}
                status = {"parents": [{"conditions": [accepted, ready | {"type": "ResolvedRefs"}]}]}
        one["status"] = status


def _merged(before: Object, changes: Object) -> Object:
    """A JSON merge patch (RFC 7396), which is close enough to an apply here: lists are replaced as a whole."""
    one = copy.deepcopy(before)
    for name, value in changes.items():
        one[name] = _merged(one.get(name, {}), value) if isinstance(value, dict) else copy.deepcopy(value)
    return one


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: API

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, status: int, body: Any) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        with self.server.lock:
            self._handle()

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "{}")
        url = urlsplit(self.path)
        of_gateway = {(method, path): status for method, path, _, status in CALLS}
        if status := of_gateway.get((self.command, url.path)):
            self._answer(status, {})
            return
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/version":
            self._answer(200, {"gitVersion": "v1.34.0"})
            return
        if url.path.endswith("/selfsubjectaccessreviews"):
            self._answer(201, {"status": {"allowed": True}})
            return
        parts = url.path.strip("/").split("/")
        version, rest = ("/".join(parts[1:3]), parts[3:]) if parts[0] == "apis" else (parts[1], parts[2:])
        if not rest:
            found = [
                {"name": plural, "kind": kind.replace("Knative", "Service"), "namespaced": True}
                for (own, plural), kind in self.server.kinds.items()
                if own == version
            ]
            self._answer(200, {"resources": found})
            return
        plural, name = rest[2], rest[3] if len(rest) > 3 else ""
        self._object(self.server.kinds[version, plural], name, rest[4:], query, body)

    def _object(self, kind: str, name: str, sub: list[str], query: dict[str, str], body: Object) -> None:
        objects = self.server.objects
        if sub == ["log"]:
            self._answer(200, LOGS[name.partition("-")[0]])
        elif self.command == "GET" and not name:
            wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
            found = [
                one
                for one in self.server.of_kind(kind).values()
                if wanted.items() <= one["metadata"].get("labels", {}).items()
            ]
            self._answer(200, {"items": found})
        elif self.command in ("POST", "PUT", "PATCH") and "dryRun" in query:
            self._answer(200, body)
        elif self.command in ("POST", "PUT", "PATCH"):
            self._answer(200, self.server.put(kind, name or body["metadata"]["name"], body))
        elif (kind, name) not in objects:
            self._answer(404, {"message": f"there is no {kind} {name}"})
        elif self.command == "GET":
            self._answer(200, objects[kind, name])
        else:
            del objects[kind, name]
            self.server.watch(self.server)
            self._answer(200, {})


@contextmanager
def serving(objects: list[Object], watch: Callable[[API], None]) -> Iterator[API]:
    """An API server that knows the kinds of these objects, and those that every release needs."""
    kinds = {
        ("v1", "configmaps"): "ConfigMap",
        ("v1", "pods"): "Pod",
        ("apps/v1", "deployments"): "Deployment",
        ("batch/v1", "jobs"): "Job",
        ("coordination.k8s.io/v1", "leases"): "Lease",
        ("serving.knative.dev/v1", "revisions"): "Revision",
    }
    for one in objects:
        plural = one["kind"].lower().removesuffix("y") + ("ies" if one["kind"].endswith("cy") else "s")
        plural = plural if not one["kind"].endswith("Gateway") else "gateways"
        is_knative = one["apiVersion"].startswith("serving.knative.dev/")
        kinds[one["apiVersion"], plural] = "Knative" if is_knative else one["kind"]
    api = API(kinds, watch)
    thread = threading.Thread(target=api.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.shutdown()
        api.server_close()


def kubeconfig(api: API, folder: Path) -> Path:
    file = folder / "kubeconfig"
    url = f"http://127.0.0.1:{api.server_address[1]}"
    told = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }
    file.write_text(json.dumps(told | {"current-context": "here", "apiVersion": "v1", "kind": "Config"}))
    return file
