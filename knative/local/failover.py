"""`aegis failover`: promote the replica of `make up REPLICA=1` and keep the old primary from accepting writes."""

import contextlib
import json
from pathlib import Path

import psutil

from knative.data_folder import ENVIRONMENT
from knative.local import servers
from knative.local.replica import MAKE_SLOT, NAMES, SLOT, primary
from knative.local.servers import STANDBY
from knative.local.supervisor import StartFailed
from knative.terminal import Refused, Result
from shared.runtime import database_url
from shared.runtime.database_url import DatabaseUrl

STOP_SECONDS = 5
PROMOTE_SECONDS = 30


def failover(data: Path) -> Result:
    """Promote the replica and return what happened.

    Raises:
        Refused: no replica can take over; the primary is unchanged.
    """
    named = _pair(data)
    try:
        old = primary(data)
    except StartFailed as error:
        raise Refused(f"Nothing was changed. {error}") from None
    (new,) = set(NAMES) - {old}
    url = {
        name: f"postgresql://{named.user}:{named.password}@{address.host}:{address.port}/{named.database}"
        for name, address in zip(NAMES, named.addresses, strict=True)
    }
    try:
        latest = _ask(url[new], "SELECT date_trunc('second', pg_last_xact_replay_timestamp())")
    except StartFailed as error:
        raise Refused(f"Nothing was changed. The replica does not answer, so it cannot take over.\n{error}") from None
    if _runs(data / old) and not _is_followed(url[old]):
        raise Refused(
            "Nothing was changed. The replica does not follow the primary and lacks what was written since "
            f"{latest}.\nStop make up and start it with REPLICA=1 to create a new copy."
        )
    ended_in_order = _fence(data / old, url[new])
    try:
        servers.run_program("pg_ctl", "promote", "--pgdata", data / new, "--timeout", str(PROMOTE_SECONDS))
        _ask(url[new], MAKE_SLOT)
    except StartFailed as error:
        raise Refused(
            f"{old} no longer accepts writes, and {new} could not be promoted: {error}\n"
            f"To continue with {old}, stop make up, delete {data / old / STANDBY}, and start make up REPLICA=1."
        ) from None
    lost = (
        f"{old} was shut down cleanly: nothing is lost."
        if ended_in_order
        else f"{old} was not shut down cleanly: what it had not sent is lost. {new} has all commits until {latest}."
    )
    return Result(
        f"{new} is the primary. {lost}\nIf {old} comes back, it follows {new}.",
        {"primary": new, "replica": old, "is_complete": ended_in_order, "latest": latest},
    )


def _pair(data: Path) -> DatabaseUrl:
    """Return the URL with both servers of `make up REPLICA=1`."""
    start = "start it with make up REPLICA=1 (DATA_DIR names another folder)."
    try:
        settings = json.loads((data / ENVIRONMENT).read_text())
        named = database_url.parse(settings.get("OWNER_DATABASE_URL") or settings["DATABASE_URL"])
    except FileNotFoundError:
        raise Refused(f"Nothing was changed. No service runs on {data}: {start}") from None
    if len(named.addresses) != len(NAMES):
        raise Refused(f"Nothing was changed. The service on {data} has no replica: {start}")
    return named


def _is_followed(url: str) -> bool:
    """Return whether a replica is connected to a primary, or the primary does not answer."""
    try:
        return _ask(url, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != "0"
    except StartFailed:
        return True


def _fence(folder: Path, other: str) -> bool:
    """Make a server a standby of another and stop it if it runs. Return whether it was shut down cleanly.

    The order matters: a server that starts meanwhile either sees the standby mark or is stopped here.
    """
    with (folder / "postgresql.auto.conf").open("a") as configuration:
        configuration.write(f"primary_conninfo = '{other}?application_name={SLOT}'\nprimary_slot_name = '{SLOT}'\n")
    (folder / STANDBY).touch()
    if not _runs(folder):
        return False
    try:
        servers.run_program("pg_ctl", "stop", "--pgdata", folder, "--mode", "fast", "--timeout", str(STOP_SECONDS))
    except StartFailed:
        _kill(folder)
        return False
    return True


def _runs(folder: Path) -> bool:
    try:
        servers.run_program("pg_ctl", "status", "--pgdata", folder)
    except StartFailed:
        return False
    return True


def _kill(folder: Path) -> None:
    """Kill all its processes: a remaining one could still commit its transaction."""
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        postmaster = psutil.Process(int((folder / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=STOP_SECONDS)


def _ask(url: str, query: str) -> str:
    in_time = f"{url}?connect_timeout={STOP_SECONDS}"
    return servers.run_program("psql", "--dbname", in_time, "--no-align", "--tuples-only", "--command", query).strip()
