"""One release command at a time: a Lease (coordination.k8s.io/v1) in the namespace, renewed while the command lives."""

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
"""A command that was killed holds up the next one for so long."""
RENEW_SECONDS = 5.0

_API = "coordination.k8s.io/v1"


def operator() -> str:
    """Who runs this command, as records name them."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


class Lease:
    """Held within a `with` block; `check` says whether it still is."""

    def __init__(self, cluster: Cluster, progress: Progress) -> None:
        self._cluster = cluster
        self._progress = progress
        self._holder = f"{operator()} (process {os.getpid()}, since {datetime.now(UTC):%H:%M:%S} UTC)"
        self._stopped = threading.Event()
        self._lost = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Takes the lease; waits for one that nobody renews any more to run out.

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
            Refused: this command was away for so long that another one has taken over.
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
                # The version makes it fail when somebody else is faster.
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
    """As Kubernetes' MicroTime."""
    return time_.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
