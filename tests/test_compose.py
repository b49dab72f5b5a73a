"""compose.yaml, for those who have Docker: held against its specification, and against what the service needs."""

import subprocess
import sys
from typing import Any

import pytest
import yaml

from knative.local.servers import MAX_CONNECTIONS
from knative.local.up import DEFAULT_PORTS
from tests.conftest import ROOT

pytestmark = pytest.mark.no_service

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
SERVERS = COMPOSE["services"].keys() - {"user-service"}


def test_it_is_what_the_compose_specification_describes() -> None:
    validate = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    done = subprocess.run(validate, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_service_can_be_reached_from_outside_and_from_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"user-service": ["127.0.0.1:8080:8080"]}
    assert {tuple(service["networks"]) for service in COMPOSE["services"].values()} == {("aegis",)}


def test_the_service_waits_until_each_server_is_healthy() -> None:
    waits = COMPOSE["services"]["user-service"]["depends_on"]
    assert waits == {name: {"condition": "service_healthy"} for name in SERVERS}
    assert all("healthcheck" in COMPOSE["services"][name] for name in SERVERS)
    development = (ROOT / "Dockerfile").read_text("utf-8").split("FROM builder AS development\n")[1].split("FROM ")[0]
    assert "HEALTHCHECK" in development


def test_the_service_is_told_where_each_server_is() -> None:
    environment = COMPOSE["services"]["user-service"]["environment"]
    assert environment.keys() >= DEFAULT_PORTS.keys()
    for setting, port in DEFAULT_PORTS.items():
        assert any(f"{name}:{port}" in environment[setting] for name in SERVERS), setting


def test_the_functions_connect_as_another_role_than_the_owner_and_nobody_as_the_superuser() -> None:
    environment = COMPOSE["services"]["user-service"]["environment"]
    users = [environment[name].partition("//")[2].partition(":")[0] for name in ("DATABASE_URL", "OWNER_DATABASE_URL")]
    assert users == ["aegis_functions", "aegis"]
    postgres = COMPOSE["services"]["postgres"]
    assert "POSTGRES_USER" not in postgres["environment"]
    (script,) = postgres["configs"]
    assert script["target"].startswith("/docker-entrypoint-initdb.d/")
    assert (ROOT / COMPOSE["configs"][script["source"]]["file"]).name == "owner.sql"


def test_what_must_outlive_a_container_is_on_a_named_volume() -> None:
    mounted = {volume.partition(":")[0] for one in COMPOSE["services"].values() for volume in one.get("volumes", [])}
    assert mounted == COMPOSE["volumes"].keys() == {"postgres", "kafka", "service"}


def test_its_servers_are_those_of_a_cluster() -> None:
    """So that what works here works there."""
    manifests = "".join(file.read_text("utf-8") for file in (ROOT / "knative/components").rglob("*.yaml"))
    for name in SERVERS:
        image = COMPOSE["services"][name]["image"]
        repository = image if "/" in image else f"library/{image}"
        assert f"image: docker.io/{repository}\n" in manifests, image


def test_postgresql_takes_as_many_connections_as_the_embedded_one() -> None:
    assert f"max_connections={MAX_CONNECTIONS}" in COMPOSE["services"]["postgres"]["command"]
