"""One release command at a time: a Lease (coordination.k8s.io/v1) in the namespace, renewed while the command runs."""

import getpass
import os
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from types import TracebackType

from knative.kubernetes.cluster import Cluster, Object, Rejected
from knative.terminal import Progress, Refused

NAME = "aegis-release"
DURATION = timedelta(seconds=30)
"""How long a killed command blocks the next one."""
RENEW_SECONDS = 5.0

_API = "coordination.k8s.io/v1"


def operator() -> str:
    """Return who runs this command, for records."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


class Lease:
    """A lease held for a `with` block; `check` raises if it was lost."""

    def __init__(self, cluster: Cluster, progress: Progress) -> None:
        self._cluster = cluster
        self._progress = progress
        self._holder = f"{operator()} (process {os.getpid()}, since {datetime.now(UTC):%H:%M:%S} UTC)"
        self._stopped = threading.Event()
        self._lost = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Take the lease. If its holder no longer renews it, wait until it expires.

        Raises:
            Refused: another command holds it.
        """
        seen = ""
        while not self._take():
            spec = self._spec()
            renewed = str(spec.get("renewTime", ""))
            if seen and renewed != seen:
                raise Refused(
                    f"Nothing was changed. Another release is under way: {spec.get('holderIdentity')}.\n"
                    "Wait until it has ended: aegis releases shows its progress."
                )
            seen = renewed
            self._progress.wait(f"waiting until {spec.get('holderIdentity')} renews the lease or it expires")
            time.sleep(RENEW_SECONDS + 1)
        self._renewal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._renewal.join()
        if not self._lost.is_set():
            self._cluster.delete({"apiVersion": _API, "kind": "Lease", "metadata": {"name": NAME}})

    def check(self) -> None:
        """
        Raises:
            Refused: this command did not renew the lease in time, so another one may have taken over.
        """
        if self._lost.is_set():
            raise Refused(
                "This command has lost its lease: another one may have taken over. aegis releases shows which."
            )

    def _take(self) -> bool:
        now = datetime.now(UTC)
        lease = self._cluster.get(_API, "Lease", NAME)
        spec = {
            "holderIdentity": self._holder,
            "leaseDurationSeconds": int(DURATION.total_seconds()),
            "acquireTime": _micro(now),
            "renewTime": _micro(now),
        }
        manifest: Object = {"apiVersion": _API, "kind": "Lease", "metadata": {"name": NAME}, "spec": spec}
        try:
            if lease is None:
                self._cluster.request("POST", self._cluster.path(_API, "Lease"), manifest)
            else:
                held = lease["spec"]
                until = datetime.fromisoformat(held["renewTime"]) + timedelta(seconds=held["leaseDurationSeconds"])
                if now < until:
                    return False
                # With the version, the request fails if another command was faster.
                manifest["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
                self._cluster.request("PUT", self._cluster.path(_API, "Lease", NAME), manifest)
        except Rejected as error:
            if error.status == 409:
                return False
            raise
        return True

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._stopped.wait(RENEW_SECONDS):
            try:
                lease = self._cluster.get(_API, "Lease", NAME)
                if lease is None or lease["spec"]["holderIdentity"] != self._holder:
                    break
                lease["spec"]["renewTime"] = _micro(datetime.now(UTC))
                self._cluster.request("PUT", self._cluster.path(_API, "Lease", NAME), lease)
                renewed = time.monotonic()
            except Rejected:
                if time.monotonic() - renewed > DURATION.total_seconds():
                    break
        else:
            return
        self._lost.set()

    def _spec(self) -> Object:
        lease = self._cluster.get(_API, "Lease", NAME)
        return lease["spec"] if lease else {}


def _micro(time_: datetime) -> str:
    """Format a time as a Kubernetes MicroTime."""
    return time_.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
