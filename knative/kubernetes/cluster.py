"""Access to a cluster by manifest, through the `kubernetes` client.

Objects are written by server-side apply with one field manager: fields in a manifest override those of other managers,
and all other fields stay. `set` patches single fields instead.
"""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import config
from kubernetes.config.config_exception import ConfigException

from knative.terminal import Refused
from shared.runtime.manifests import NAMESPACE

FIELD_MANAGER = "aegis"
TIMEOUT_SECONDS = 30.0
AT_ONCE = 8
"""Concurrent requests: enough to change 49 functions in a second without overloading the API server's webhooks."""
TRIES = 5
RETRIED = frozenset({0, 409, 429, 500, 502, 503, 504})
"""0 is a broken connection. A restarting webhook causes a 500."""

Object = dict[str, Any]
Key = tuple[str, str, str]
"""apiVersion, kind and name."""
T = TypeVar("T")
R = TypeVar("R")


class Rejected(Exception):
    """The API server refused a request or could not be reached. The message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """A kube context and the namespace of the service in it."""

    def __init__(self, context: str | None) -> None:
        """
        Args:
            context: None for the current one.

        Raises:
            Refused: there is no such context, or no configuration.
        """
        try:
            contexts, current = config.list_kube_config_contexts()
            self.context: str = context or current["name"]
            if self.context not in {one["name"] for one in contexts}:
                known = ", ".join(one["name"] for one in contexts)
                raise Refused(f"Nothing was changed. There is no context {self.context}. Available: {known}.")
            self._api = config.new_client_from_config(context=self.context)
        except (ConfigException, OSError) as error:
            raise Refused(
                f"Nothing was changed. Cannot read a kube context: {error}\nSet KUBECONFIG, or pass --context."
            ) from error
        self._kinds: dict[str, dict[str, Object]] = {}

    def request(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json", **query: str
    ) -> Any:
        """Return the API server's answer as JSON. Retries errors that may be temporary.

        Raises:
            Rejected: with the status, or 0 if the server could not be reached.
        """
        return json.loads(self._text(method, path, body, query, content_type))

    def _text(self, method: str, path: str, body: Object | None, query: dict[str, str], content_type: str) -> str:
        for attempt in range(TRIES):
            try:
                return self._send(method, path, body, query, content_type)
            except Rejected as error:
                # After a conflict (409) the caller must read the object again, except for a patch.
                is_final = error.status not in RETRIED or (error.status == 409 and method != "PATCH")
                if is_final or attempt == TRIES - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _send(self, method: str, path: str, body: Object | None, query: dict[str, str], content_type: str) -> str:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        # Adds the credentials of the context, which the client renews.
        self._api.update_params_for_auth(headers, [], ["BearerToken"], "", method, None)
        try:
            response = self._api.rest_client.pool_manager.request(
                method,
                self._api.configuration.host + path + (f"?{urlencode(query)}" if query else ""),
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=TIMEOUT_SECONDS,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Rejected(0, f"cannot reach the API server: {error}") from error
        text: str = response.data.decode("utf-8", "replace")
        if response.status >= 400:
            try:
                message = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                message = text[:500]
            raise Rejected(response.status, f"{message} ({response.status})")
        return text

    def path(self, api_version: str, kind: str, name: str = "", namespace: str = NAMESPACE) -> str:
        """Return the path of an object, or of all objects of a kind.

        Raises:
            Rejected: 404 if the cluster does not know the kind.
        """
        base = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        if api_version not in self._kinds:
            try:
                found = self.request("GET", base)["resources"]
            except Rejected as error:
                if error.status != 404:
                    raise
                found = []
            self._kinds[api_version] = {one["kind"]: one for one in found if "/" not in one["name"]}
        if kind not in self._kinds[api_version]:
            raise Rejected(404, f"the cluster does not know the kind {kind} of {api_version}")
        resource = self._kinds[api_version][kind]
        scope = f"/namespaces/{quote(namespace)}" if resource["namespaced"] else ""
        return f"{base}{scope}/{resource['name']}" + (f"/{quote(name)}" if name else "")

    def plural(self, api_version: str, kind: str) -> str:
        """Return the name of a kind in RBAC rules: services for Service."""
        return self.path(api_version, kind).rpartition("/")[2]

    def apply(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Apply a manifest and return the resulting object."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        applied: Object = self.request(
            "PATCH", self._path_of(manifest), manifest, "application/apply-patch+yaml", **query
        )
        return applied

    def set(self, manifest: Object, changes: Object) -> None:
        """Change only these fields of an object (JSON merge patch, RFC 7396)."""
        path = self._path_of(manifest)
        self.request("PATCH", path, changes, "application/merge-patch+json", fieldManager=FIELD_MANAGER)

    def get(self, api_version: str, kind: str, name: str, namespace: str = NAMESPACE) -> Object | None:
        """Return an object, or None if it does not exist."""
        try:
            found: Object = self.request("GET", self.path(api_version, kind, name, namespace))
        except Rejected as error:
            if error.status == 404:
                return None
            raise
        return found

    def live(self, manifest: Object) -> Object | None:
        """Return the live object of a manifest, or None."""
        api_version, kind, name = key(manifest)
        return self.get(api_version, kind, name, manifest["metadata"].get("namespace", NAMESPACE))

    def list(self, api_version: str, kind: str, labels: str = "") -> list[Object]:
        """Return the objects of a kind in the namespace that match a label selector."""
        found: list[Object] = self.request("GET", self.path(api_version, kind), labelSelector=labels)["items"]
        return found

    def delete(self, manifest: Object) -> None:
        """Delete an object and what it owns, if it exists."""
        try:
            self.request("DELETE", self._path_of(manifest), propagationPolicy="Background")
        except Rejected as error:
            if error.status != 404:
                raise

    def logs(self, pod: str, container: str, lines: int, *, previous: bool = False) -> str:
        """Return the last lines of a container's log, or of the log before its last restart."""
        query = {"container": container, "tailLines": str(lines), "previous": json.dumps(previous)}
        return self._text("GET", self.path("v1", "Pod", pod) + "/log", None, query, "application/json")

    def _path_of(self, manifest: Object) -> str:
        api_version, kind, name = key(manifest)
        return self.path(api_version, kind, name, manifest["metadata"].get("namespace", NAMESPACE))


def key(manifest: Object) -> Key:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def named(manifest: Object) -> str:
    """Return kind and name, for messages."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def in_parallel(work: Callable[[T], R], over: Iterable[T]) -> list[R]:
    """Return the results of `work` for each item, run several at a time. Raise the first error after all have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, over))


def condition(manifest: Object, type_: str = "Ready") -> Object:
    """Return a condition of the object's current generation, or an empty one."""
    status, generation = manifest.get("status", {}), manifest.get("metadata", {}).get("generation")
    if status.get("observedGeneration", generation) != generation:
        return {}
    return next((one for one in status.get("conditions", ()) if one["type"] == type_), {})
