"""The cluster, as the release command needs it: any object by its manifest, through the `kubernetes` client.

Everything is written with one field manager, by server-side apply: what another one has set in the same place is
overruled, what nobody here ever set is left alone. Only traffic is moved by itself.
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
"""Requests: 49 functions are changed in a second, and the API server's webhooks are not swamped."""
TRIES = 5
RETRIED = frozenset({0, 409, 429, 500, 502, 503, 504})
"""0 is a connection that broke. A webhook that restarts is a 500."""

Object = dict[str, Any]
Key = tuple[str, str, str]
"""apiVersion, kind and name."""
T = TypeVar("T")
R = TypeVar("R")


class Rejected(Exception):
    """The API server's no; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """A kube context, and the namespace of the service in it."""

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
                raise Refused(f"Nothing was changed. There is no context {self.context}; there are: {known}.")
            self._api = config.new_client_from_config(context=self.context)
        except (ConfigException, OSError) as error:
            raise Refused(
                f"Nothing was changed. No kube context can be read: {error}\nSet KUBECONFIG, or name a --context."
            ) from error
        self._kinds: dict[str, dict[str, Object]] = {}

    def request(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json", **query: str
    ) -> Any:
        """What the API server answers, as JSON; tried again where that may help.

        Raises:
            Rejected: with its status, 0 when it could not be reached.
        """
        return json.loads(self._text(method, path, body, query, content_type))

    def _text(self, method: str, path: str, body: Object | None, query: dict[str, str], content_type: str) -> str:
        for attempt in range(TRIES):
            try:
                return self._send(method, path, body, query, content_type)
            except Rejected as error:
                # Whoever changes what has changed meanwhile (409) must look again; an apply need not.
                is_final = error.status not in RETRIED or (error.status == 409 and method != "PATCH")
                if is_final or attempt == TRIES - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _send(self, method: str, path: str, body: Object | None, query: dict[str, str], content_type: str) -> str:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        # The credentials of the context, which the client renews.
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
            raise Rejected(0, f"the API server cannot be reached: {error}") from error
        text: str = response.data.decode("utf-8", "replace")
        if response.status >= 400:
            try:
                message = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                message = text[:500]
            raise Rejected(response.status, f"{message} ({response.status})")
        return text

    def path(self, api_version: str, kind: str, name: str = "", namespace: str = NAMESPACE) -> str:
        """Where an object, or all of a kind, is.

        Raises:
            Rejected: 404, the cluster does not know the kind.
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
        """The name of a kind in a rule of RBAC: services for Service."""
        return self.path(api_version, kind).rpartition("/")[2]

    def apply(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Makes an object what the manifest says; returns it as it is then."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        applied: Object = self.request(
            "PATCH", self._path_of(manifest), manifest, "application/apply-patch+yaml", **query
        )
        return applied

    def set(self, manifest: Object, changes: Object) -> None:
        """Changes these fields of an object alone (a JSON merge patch, RFC 7396)."""
        path = self._path_of(manifest)
        self.request("PATCH", path, changes, "application/merge-patch+json", fieldManager=FIELD_MANAGER)

    def get(self, api_version: str, kind: str, name: str, namespace: str = NAMESPACE) -> Object | None:
        """An object; None when there is none."""
        try:
            found: Object = self.request("GET", self.path(api_version, kind, name, namespace))
        except Rejected as error:
            if error.status == 404:
                return None
            raise
        return found

    def live(self, manifest: Object) -> Object | None:
        """The object that a manifest is about."""
        api_version, kind, name = key(manifest)
        return self.get(api_version, kind, name, manifest["metadata"].get("namespace", NAMESPACE))

    def list(self, api_version: str, kind: str, labels: str = "") -> list[Object]:
        """All objects of a kind in the namespace, or those with these labels (a label selector)."""
        found: list[Object] = self.request("GET", self.path(api_version, kind), labelSelector=labels)["items"]
        return found

    def delete(self, manifest: Object) -> None:
        """Deletes an object, and what it owns; one that is not there is no error."""
        try:
            self.request("DELETE", self._path_of(manifest), propagationPolicy="Background")
        except Rejected as error:
            if error.status != 404:
                raise

    def logs(self, pod: str, container: str, lines: int, *, previous: bool = False) -> str:
        """The last lines that a container has written; those of its previous start on request."""
        query = {"container": container, "tailLines": str(lines), "previous": json.dumps(previous)}
        return self._text("GET", self.path("v1", "Pod", pod) + "/log", None, query, "application/json")

    def _path_of(self, manifest: Object) -> str:
        api_version, kind, name = key(manifest)
        return self.path(api_version, kind, name, manifest["metadata"].get("namespace", NAMESPACE))


def key(manifest: Object) -> Key:
    return manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]


def named(manifest: Object) -> str:
    """Kind and name, as an operator reads them."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def in_parallel(work: Callable[[T], R], over: Iterable[T]) -> list[R]:
    """What `work` gives for each, some at once; raises the first error when all have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, over))


def condition(manifest: Object, type_: str = "Ready") -> Object:
    """A condition in the status, of this generation; empty while there is none."""
    status, generation = manifest.get("status", {}), manifest.get("metadata", {}).get("generation")
    if status.get("observedGeneration", generation) != generation:
        return {}
    return next((one for one in status.get("conditions", ()) if one["type"] == type_), {})
