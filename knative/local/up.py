"""Run the whole service on one machine: `make up`.

PORT, LISTEN_ADDRESS and DATA_DIR set where. DATABASE_URL, REDIS_URL and KAFKA_BOOTSTRAP_SERVERS replace the embedded
servers. OWNER_DATABASE_URL is the database with the login of the tables' owner, for the migration. REPLICA=1 starts a
second PostgreSQL, which follows the first.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from knative.data_folder import ENVIRONMENT
from knative.keys import new_backup_key, new_signing_keys, new_sms_key, public_keys, recipient_of
from knative.local import fork, replica, servers
from knative.local.edits import Edits, Served
from knative.local.router import SITE, direct, router
from knative.local.servers import LOOPBACK, free_port
from knative.local.supervisor import Process, StartFailed, Stopped, Supervisor
from shared.runtime.manifests import functions, manifests
from shared.runtime.resource_names import function_name
from shared.runtime.settings import SECRETS, load, secrets_of
from shared.runtime.stopping import stopped_by

ROOT = Path(__file__).parents[2]
TARGETS = "targets.json"
"""In the data folder while it runs: where Prometheus finds the functions (file_sd)."""

PRELOADED = (
    *(
        "shared.events.dispatcher",
        "knative.local.site",
        "shared.framework.idempotency",
        "shared.postgresql.migrate",
        "shared.events.relay",
    ),
    # Functions import these on first use, which is before they are ready.
    *("email_validator", "gunicorn.workers.gthread", "prometheus_client", "redis"),
    "sqlalchemy.dialects.postgresql.pg8000",
    *(f"functions.{name}" for name in functions()),
)
"""Modules imported once for all our processes."""

OF_OPERATORS = ("OWNER_DATABASE_URL",)
"""Settings that only the migration and operator commands get."""

DEFAULT_PORTS = {"DATABASE_URL": 5432, "REDIS_URL": 6379, "KAFKA_BOOTSTRAP_SERVERS": 9092}


class Refused(Exception):
    """The service cannot start. The message says why and what to do."""


def main() -> None:
    try:
        port = int(os.environ.get("PORT") or "8080")
        if port not in range(1, 65536):
            raise ValueError
    except ValueError:
        sys.exit("PORT must be a number from 1 to 65535.")
    data = (ROOT / (os.environ.get("DATA_DIR") or ".local")).resolve()
    stopped = stopped_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        with lock(data, port):
            run(data, port, stopped)
    except Stopped:
        sys.exit(130)
    except (Refused, StartFailed) as error:
        sys.exit(f"\n{error}")
    except OSError as error:
        sys.exit(f"\n{error}\nMake the folder writable for you, or choose another: make up DATA_DIR=...")


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal must not prevent an orderly stop
        print(line, flush=True)


def lock(data: Path, port: int) -> IO[str]:
    """Lock the data folder until the process ends, however it ends."""
    data.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Keep its secrets out of git. Do not hide a folder that has other contents.
    if not any(data.iterdir()) or (data / "secrets.json").exists():
        (data / ".gitignore").write_text("*\n")
    file = (data / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise Refused(
            f"The service is already running on {data}: {file.read().strip()}\n"
            "Stop it, or start another one beside it: make up PORT=8081 DATA_DIR=.local2"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()}, port {port}\n")
    file.flush()
    return file


def run(data: Path, port: int, stopped: threading.Event) -> None:
    """Start everything, keep it running, and stop it."""
    started = time.monotonic()
    supervisor = Supervisor(data, say, stopped)
    supervisor.stop_leftovers()
    if is_taken(port):
        raise Refused(f"Port {port} is taken by another program. Stop it, or choose another: make up PORT={port + 1}")
    environment_file = data / ENVIRONMENT
    try:
        environment = start_servers(supervisor, data) | settings(data, port)
        edits = start_functions(supervisor, data, port, environment)
        # Renamed when complete: programs that wait for it read it at once.
        unfinished = data / f"{ENVIRONMENT}.unfinished"
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(environment, indent=1))
        unfinished.replace(environment_file)
        greet(port, data, time.monotonic() - started)
        while not stopped.wait(0.1):
            supervisor.restart_the_dead()
            edits.serve()
    finally:
        for file in (ENVIRONMENT, TARGETS):
            (data / file).unlink(missing_ok=True)
        say("\nstopping")
        supervisor.stop()


def start_servers(supervisor: Supervisor, data: Path) -> dict[str, str]:
    """Start the servers that the environment does not name. Return the addresses of all."""
    has_replica = os.environ.get("REPLICA") == "1"
    if has_replica and os.environ.get("DATABASE_URL"):
        raise Refused("REPLICA=1 is for the embedded PostgreSQL, and DATABASE_URL replaces it. Set one of them.")

    def postgresql() -> tuple[Process, str]:
        return servers.postgresql(data, secret(data, "database_password"), replica.primary(data))

    embedded: dict[str, tuple[str, Callable[[], tuple[Process, str]]]] = {
        "DATABASE_URL": ("PostgreSQL", postgresql),
        "REDIS_URL": ("Redis (Valkey)", lambda: servers.redis(data)),
        "KAFKA_BOOTSTRAP_SERVERS": ("Kafka (Tansu)", servers.kafka),
    }
    addresses: dict[str, str] = {}
    processes: list[Process] = []
    for name, (title, make) in embedded.items():
        if address := os.environ.get(name):
            say(f"using {name} from the environment instead of an embedded {title}")
            check_listening(name, address)
            if name == "DATABASE_URL" and (owner := os.environ.get("OWNER_DATABASE_URL")):
                addresses["OWNER_DATABASE_URL"] = owner
        else:
            say(f"starting {title}")
            process, address = make()
            supervisor.start(process)
            processes.append(process)
            if name == "DATABASE_URL":
                addresses["OWNER_DATABASE_URL"] = address
                address = servers.functions_url(address, secret(data, "functions_database_password"))
            if name == "KAFKA_BOOTSTRAP_SERVERS":
                addresses["KAFKA_FETCH_MILLISECONDS"] = servers.KAFKA_FETCH_MILLISECONDS
        addresses[name] = address
    if fork.IS_SAFE:  # while they start
        fork.preload(PRELOADED)
    supervisor.wait_until_ready(*processes, seconds=30)
    if has_replica:
        say("copying PostgreSQL to a replica")
        process, replica_url = replica.replica(data, addresses["OWNER_DATABASE_URL"])
        supervisor.start(process)
        supervisor.wait_until_ready(process, seconds=30)
        addresses |= replica.urls(data, addresses["OWNER_DATABASE_URL"], replica_url, addresses["DATABASE_URL"])
    return addresses


def is_taken(port: int) -> bool:
    """Return whether a program listens on a port of localhost. Tries IPv4 and IPv6, as browsers do."""
    try:
        socket.create_connection(("localhost", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def check_listening(name: str, address: str) -> None:
    """Refuse an address where no server listens, before anything waits for it."""
    for each in address.split(","):
        parts = urlsplit(each if "://" in each else f"//{each}")
        try:
            host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[name]
            socket.create_connection((host, port), timeout=5).close()
        except ValueError:
            raise Refused(f"{name} is malformed.") from None
        except OSError as error:
            raise Refused(f"Cannot reach {host}:{port} of {name}: {error}.") from None


def settings(data: Path, port: int) -> dict[str, str]:
    """Return all settings, including the secrets of the data folder."""
    signing_keys = secret(data, "signing_keys", new_signing_keys)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(data),
        "HOST": LOOPBACK,
        "ENVIRONMENT": "development",
        "LOG_LEVEL": os.environ.get("LOG_LEVEL", "INFO"),
        # A name, as passkeys need a domain, not an IP address.
        "PUBLIC_URL": f"http://localhost:{port}",
        # /docs sends its requests to that name, even if it was opened by IP address.
        "CORS_ALLOWED_ORIGINS": ",".join(
            dict.fromkeys(
                [
                    *(f"http://{host}:{port}" for host in ("localhost", LOOPBACK)),
                    *filter(None, [os.environ.get("CORS_ALLOWED_ORIGINS")]),
                ]
            )
        ),
        "JWT_AUDIENCE": os.environ.get("JWT_AUDIENCE", ""),
        "JWT_SECRET_KEY": signing_keys,
        "JWT_PUBLIC_KEYS": public_keys(signing_keys),
        "JWT_REFRESH_SECRET_KEY": secret(data, "refresh_key"),
        "ENCRYPTION_KEY": secret(data, "encryption_key"),
        "DELIVERY_KEY": secret(data, "delivery_key"),
        "GATEWAY_KEY": secret(data, "gateway_key"),
        "EMAIL_API_KEY": secret(data, "email_api_key"),
        "EMAIL_FROM": "no-reply@aegis.example.com",
        "SMS_API_KEY": secret(data, "sms_api_key", new_sms_key),
        "SMS_FROM": "+15005550006",
        "BUSINESS_REGISTRY_API_KEY": secret(data, "business_registry_api_key"),
        "BACKUP_STORE": str(data / "backups"),
        "BACKUP_RECIPIENTS": recipient_of(secret(data, "backup_key", new_backup_key)),
        "BACKUP_MANIFEST_KEY": secret(data, "backup_manifest_key"),
        # In other environments only operators have it.
        "BACKUP_IDENTITY": secret(data, "backup_key", new_backup_key),
        # The router is the only proxy. Loopback is exempt from per-address limits, for load tests.
        "TRUSTED_PROXY_HOPS": "1",
        "RATE_LIMIT_EXEMPT_NETWORKS": "127.0.0.0/8",
        "UNVERIFIED_MAILS_PER_HOUR": "10000000",
    }


def secret(data: Path, name: str, new: Callable[[], str] = lambda: secrets.token_hex(32)) -> str:
    """Return a secret of this data folder, created on first use and readable only by its owner."""
    file = data / "secrets.json"
    file.touch(mode=0o600)
    known: dict[str, str] = json.loads(file.read_text() or "{}")
    if name not in known:
        known[name] = new()
        file.write_text(json.dumps(known, indent=1))
    return known[name]


def start_functions(supervisor: Supervisor, data: Path, port: int, environment: dict[str, str]) -> Edits:
    """Migrate the database and start our processes: functions, site, relay, dispatcher, router.

    Returns the object that serves edits of them.
    """
    ports = {name: free_port() for name in (*functions(), SITE)}
    internal_port = free_port()
    for provider in ("EMAIL_SERVICE_URL", "SMS_SERVICE_URL", "BUSINESS_REGISTRY_API_URL"):
        environment[provider] = f"http://{LOOPBACK}:{ports[SITE]}"
    usual = {name: value for name, value in environment.items() if name not in OF_OPERATORS}

    def python(name: str, module: str, given: Mapping[str, str] = usual, **particular: str) -> Process:
        return Process(
            name,
            [sys.executable, "-m", module],
            {**given, **particular},
            module=module if fork.IS_SAFE else "",
        )

    variables, named = containers(), secrets_of_functions()

    def server(name: str, its_port: int) -> Process:
        """Return the process of a function or the site."""
        address = f"http://{LOOPBACK}:{its_port}"
        if name == SITE:
            process = python(name, "knative.local.site", PORT=str(its_port))
            process.is_ready = lambda: answers(f"{address}/inbox")
        else:
            given = of_function(usual, named[name])
            process = python(name, "shared.framework.server", given, PORT=str(its_port), **variables[name])
            process.is_ready = lambda: answers(f"{address}/health/ready")
        return process

    say(f"starting {len(functions())} functions")
    served = {name: Served(server(name, its_port), its_port, free_port()) for name, its_port in ports.items()}
    for each in served.values():
        supervisor.start(each.process)
    say("migrating the database")
    supervisor.run_to_the_end(python("migrate", "shared.postgresql.migrate", given=environment))
    say("starting outbox relay, trigger dispatcher and router")
    measured = {"relay": free_port(), "dispatcher": free_port()}
    function_url = f"http://{LOOPBACK}:{internal_port}/{{service}}"
    others = (
        python("relay", "shared.events.relay", PORT=str(measured["relay"])),
        python("dispatcher", "shared.events.dispatcher", PORT=str(measured["dispatcher"]), FUNCTION_URL=function_url),
        python("scheduler", "knative.local.scheduler", FUNCTION_URL=function_url),
    )
    for process in others:
        supervisor.start(process)

    def write_targets() -> None:
        targets = [
            {"targets": [f"{LOOPBACK}:{number}"], "labels": {"url": environment["PUBLIC_URL"], "process": name}}
            for name, number in (ports | measured).items()
            if name != SITE
        ]
        (data / TARGETS).write_text(json.dumps(targets, indent=1))

    def redirect(name: str, its_port: int) -> None:
        ports[name] = its_port
        direct(data, ports)
        write_targets()

    write_targets()
    origins = load(environment).cors_allowed_origins
    envoy = router(
        data,
        os.environ.get("LISTEN_ADDRESS") or LOOPBACK,
        port,
        internal_port,
        ports,
        key=environment["GATEWAY_KEY"],
        origins=origins,
    )
    supervisor.start(envoy)
    supervisor.wait_until_ready(*(each.process for each in served.values()), envoy, seconds=60)
    return Edits(supervisor, served, others, modules=PRELOADED, make=server, direct=redirect, say=say)


def containers() -> dict[str, dict[str, str]]:
    """Return the environment variables, without secrets, of each function in the manifests."""
    return {
        name: {variable["name"]: variable["value"] for variable in variables if "value" in variable}
        for name, variables in _variables().items()
    }


def secrets_of_functions() -> dict[str, set[str]]:
    """Return the names of each function's secrets in the manifests."""
    return {
        name: {variable["name"] for variable in variables if "secretKeyRef" in variable.get("valueFrom", {})}
        for name, variables in _variables().items()
    }


def of_function(environment: Mapping[str, str], secrets_: set[str]) -> dict[str, str]:
    """Return the settings with only these secrets, as on a cluster."""
    withheld = {"BACKUP_MANIFEST_KEY", "BACKUP_IDENTITY", *secrets_of(SECRETS)} - secrets_
    if "DB_PASSWORD" in withheld:
        withheld |= {"DATABASE_URL", "REPLICA_DATABASE_URL"}
    return {name: value for name, value in environment.items() if name not in withheld}


def _variables() -> dict[str, list[dict[str, Any]]]:
    """Return the `env` of each function's container."""
    return {
        function_name(manifest["metadata"]["name"]): manifest["spec"]["template"]["spec"]["containers"][0]["env"]
        for manifest in manifests()
        if manifest["kind"] == "Service"
    }


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310
            return True
    except OSError:
        return False


def greet(port: int, data: Path, seconds: float) -> None:
    base = f"http://localhost:{port}"
    folder = "" if data == ROOT / ".local" else f"DATA_DIR={data} "
    body = json.dumps({"email": "kim@example.com", "password": "copper lantern drifts north", "name": "Kim"})
    say(
        f"""
Ready after {seconds:.1f} s. Start at {base}

  API       {base}/api/v1/users
  API docs  {base}/docs/
  Inbox     {base}/inbox
  Logs      {data / "logs"}

Register a user, then open the link in the inbox:

  curl -i {base}/api/v1/users -H 'Content-Type: application/json' -d '{body}'

Call every operation once:  {folder}make tour URL={base}
Create an administrator:    {folder}./aegis admin create EMAIL

Edits in functions/ and shared/ are served at once. Ctrl-C stops everything."""
    )


if __name__ == "__main__":
    main()
