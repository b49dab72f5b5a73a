"""docs/guide.md against the repository, and against the lines of the deployment guide that it answers."""

import ast
import re
from functools import cache
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.knative.environments import Objects, container, objects_of, scaling

pytestmark = pytest.mark.no_service

ID = "AEG-SPC-USER-20250917-7.0"
PAGE = (ROOT / "docs" / "guide.md").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")

GUIDE: dict[str, tuple[str, ...]] = {
    "2.1": (
        "load balancer (ALB/NLB)",
        "pods of the user service in a namespace",
        "PostgreSQL primary and replica in a namespace",
        "Redis cluster in a namespace",
        "Kafka cluster",
        "business registry",
        "e-mail service",
        "SMS service",
    ),
    "2.2": (
        "development: 1 pod",
        "development: 0.5 core, 1 GB",
        "development: one database",
        "development: one Redis",
        "staging: 2 pods",
        "staging: 1 core, 2 GB",
        "staging: primary and replica",
        "staging: Redis cluster of 3",
        "production: 3 pods at least, scaled",
        "production: 2 cores, 4 GB",
        "production: primary, replica and backup",
        "production: Redis cluster of 6",
    ),
    "3.1": (
        "two stages",
        "python:3.11-slim",
        "PYTHONDONTWRITEBYTECODE, PYTHONUNBUFFERED",
        "build-essential, libpq-dev",
        "pip install from requirements.txt",
        "libpq5",
        "user appuser",
        "WORKDIR, COPY, chown",
        "EXPOSE 8000",
        "HEALTHCHECK with curl",
        "uvicorn main:app",
    ),
    "3.2": (
        "user-service built from .",
        "port 8000",
        "DATABASE_URL",
        "REDIS_URL",
        "KAFKA_BOOTSTRAP_SERVERS",
        "depends_on",
        "./logs",
        "postgres:15",
        "POSTGRES_DB, POSTGRES_USER, POSTGRES_PASSWORD",
        "postgres_data",
        "init.sql",
        "ports 5432, 6379, 9092",
        "redis:7-alpine",
        "redis_data",
        "cp-kafka:latest",
        "settings of Kafka",
        "zookeeper",
        "network aegis-network",
    ),
    "4.1": ("name aegis-user-service", "labels app, service"),
    "4.2": (
        "name user-service-config",
        "LOG_LEVEL",
        "ENVIRONMENT",
        "DB_HOST",
        "DB_PORT",
        "DB_NAME",
        "REDIS_HOST",
        "REDIS_PORT",
        "KAFKA_BOOTSTRAP_SERVERS",
        "BUSINESS_REGISTRY_API_URL",
        "EMAIL_SERVICE_URL",
        "SMS_SERVICE_URL",
    ),
    "4.3": (
        "name user-service-secrets, in the manifest",
        "DB_USER",
        "DB_PASSWORD",
        "JWT_SECRET_KEY",
        "JWT_REFRESH_SECRET_KEY",
        "BUSINESS_REGISTRY_API_KEY",
        "EMAIL_API_KEY",
        "SMS_API_KEY",
    ),
    "4.4": (
        "name user-service",
        "labels app, version",
        "replicas 3",
        "image aegis/user-service:v1.0.0",
        "containerPort 8000",
        "DATABASE_URL from parts",
        "REDIS_URL from parts",
        "envFrom ConfigMap and Secret",
        "requests 1000m, 2Gi",
        "limits 2000m, 4Gi",
        "livenessProbe /health",
        "readinessProbe /health",
        "volume logs",
        "restartPolicy Always",
    ),
    "4.5": ("name user-service", "selector app: user-service", "port 80 to 8000", "type ClusterIP"),
    "4.6": (
        "class nginx",
        "rewrite-target /",
        "ssl-redirect",
        "cluster-issuer letsencrypt-prod",
        "host api.aegis.example.com, secret aegis-tls",
        "path /api/v1/users",
    ),
    "4.7": (
        "scaleTargetRef",
        "minReplicas 3",
        "maxReplicas 10",
        "CPU 70 %",
        "memory 80 %",
        "scaleDown after 300 s",
        "scaleDown 10 % a minute",
        "scaleUp after 60 s",
        "scaleUp 50 % a minute",
    ),
    "5.1": (
        "StatefulSet postgres",
        "replicas 1",
        "image postgres:15",
        "POSTGRES_DB",
        "POSTGRES_USER, POSTGRES_PASSWORD",
        "PGDATA",
        "containerPort 5432",
        "volume for data",
        "postgresql.conf",
        "requests 1000m, 2Gi; limits 2000m, 4Gi",
        "100Gi, ReadWriteOnce",
        "storageClassName fast-ssd",
    ),
    "5.2": ("name postgres-service", "port 5432, ClusterIP"),
    "5.3": (
        "Job db-migration",
        "image of the service",
        "python manage.py migrate",
        "DATABASE_URL",
        "envFrom ConfigMap and Secret",
        "restartPolicy OnFailure",
        "backoffLimit 3",
    ),
    "6.1": ("selector app: user-service", "port http, path /metrics", "interval 30s", "scrapeTimeout 10s"),
    "6.2": ("title, tags, timezone", "Request Rate", "Response Time", "Error Rate"),
    "6.3": (
        "UserServiceHighErrorRate",
        "UserServiceHighLatency",
        "UserServicePodCrashLooping",
        "labels severity, service",
        "annotations summary, description",
    ),
    "7.1": (
        "script with tag and environment",
        "set -e",
        "create the namespace",
        "apply ConfigMap and Secret",
        "run the migration and wait 300 s",
        "set the image tag by sed",
        "apply Deployment, Service, Ingress, HPA",
        "rollout status, 600 s",
        "get pods",
        "curl https://HOST/health",
    ),
    "7.2": ("to the previous revision", "to a revision that is named", "rollout status, 600 s", "get pods"),
    "8.1": (
        "replicaCount 1",
        "image tag dev",
        "pullPolicy Always",
        "requests 250m, 512Mi",
        "limits 500m, 1Gi",
        "database host postgres-dev",
        "database name aegis_user_dev",
        "redis host redis-dev",
        "kafka kafka-dev:9092",
        "ingress dev-api.aegis.example.com",
        "monitoring off",
    ),
    "8.2": (
        "replicaCount 3",
        "image tag v1.0.0",
        "pullPolicy IfNotPresent",
        "requests 1000m, 2Gi",
        "limits 2000m, 4Gi",
        "database host postgres-prod",
        "database name aegis_user",
        "redis host redis-cluster",
        "kafka kafka-cluster:9092",
        "ingress api.aegis.example.com, TLS",
        "monitoring on",
        "autoscaling 3 to 10 at 70 %",
    ),
    "9.1": (
        "podSelector app: user-service",
        "policyTypes Ingress, Egress",
        "from ingress-nginx to 8000",
        "to aegis-database, 5432",
        "to aegis-cache, 6379",
        "to anywhere, 443",
        "to anywhere, 53 TCP and UDP",
    ),
    "9.2": (
        "PodSecurityPolicy",
        "privileged false",
        "allowPrivilegeEscalation false",
        "drop ALL capabilities",
        "kinds of volumes",
        "MustRunAsNonRoot",
        "seLinux, fsGroup RunAsAny",
    ),
    "10.1": (
        "each day at 02:00",
        "image postgres:15",
        "pg_dump into a file",
        "user and password from the Secret",
        "volume backup-pvc",
        "restartPolicy OnFailure",
        "recovery (in the heading alone)",
    ),
}
"""Every line of the guide that asks for something, by section."""


@cache
def rows() -> dict[tuple[str, str], tuple[str, str, str]]:
    """Where it is, what is different, and the test that shows it, by section and line of the guide."""
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        for line in re.findall(r"^\| (.+) \|$", section, flags=re.MULTILINE):
            item, *cells = line.split(" | ")
            if item != "guide":
                where, difference, test = cells
                assert (section.split()[0], item) not in found
                found[section.split()[0], item] = (where, difference, test)
    return found


def test_the_page_has_a_row_for_every_line_of_the_guide_and_no_other() -> None:
    assert list(rows()) == [(section, item) for section, items in GUIDE.items() for item in items]
    assert ID in PAGE


def test_every_row_leads_to_a_file_and_says_how_it_differs() -> None:
    for row, (where, difference, _) in rows().items():
        (file,) = re.fullmatch(r"\[([\w./]+)\]\([\w./]+\)", where).groups()  # type: ignore[union-attr]
        assert (ROOT / file).is_file(), row
        assert difference.strip(), row


def test_every_row_names_a_test_that_there_is() -> None:
    missing = {
        named
        for _, _, named in rows().values()
        for file, name in [named.strip("`").split("::")]
        if name not in names_in(file)
    }
    assert missing == set()


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_the_page_states_the_figures_of_the_manifests() -> None:
    unstated = {
        row: figure
        for row, figures in figures_of_the_manifests().items()
        for figure in figures
        if not states(row, figure)
    }
    assert unstated == {}


def states(row: tuple[str, str], figure: str) -> bool:
    """Whether the row has the figure as a word of its own; "as the guide" stands for what the guide has."""
    _, difference, _ = rows()[row]
    text = f"{row[1]} {difference}" if "s the guide" in difference else difference
    return bool(re.search(rf"(?<![\w.]){re.escape(figure)}(?![\w.]*\w)", text))


def figures_of_the_manifests() -> dict[tuple[str, str], list[str]]:
    development, staging, production = (objects_of(name) for name in ("development", "staging", "production"))
    job = objects_of("production", "migration")["Job", "migrate"]["spec"]
    log_in = production["Service", "login"]
    login = container(log_in)
    live = login["livenessProbe"]
    postgres = container(staging["StatefulSet", "postgres"])["resources"]
    (claim,) = staging["StatefulSet", "postgres"]["spec"]["volumeClaimTemplates"]
    warm = [scaling(objects["Service", "login"])["min-scale"] for objects in (development, staging, production)]
    most = max(int(scaling(item)["max-scale"]) for (kind, _), item in production.items() if is_function(kind, item))
    cache_nodes = [objects["StatefulSet", "redis-cluster"]["spec"]["replicas"] for objects in (staging, production)]
    function, relay = (
        production["PodMonitor", "user-service"]["spec"]["podMetricsEndpoints"],
        production["ServiceMonitor", "relay"]["spec"]["endpoints"],
    )
    backup = production["CronJob", "backup"]["spec"]["jobTemplate"]["spec"]
    small = container(development["Service", "login"])["resources"]
    assert "cpu" not in login["resources"]["limits"]
    assert container(staging["Service", "login"])["resources"]["limits"] == login["resources"]["limits"]
    assert small["limits"] == login["resources"]["limits"]
    assert development["Deployment", "redis"]["spec"].get("replicas", 1) == 1
    return {
        ("2.2", "development: 1 pod"): [warm[0]],
        ("2.2", "development: 0.5 core, 1 GB"): [small["requests"]["cpu"]],
        ("2.2", "staging: 2 pods"): [warm[1]],
        ("2.2", "staging: Redis cluster of 3"): [str(cache_nodes[0])],
        ("2.2", "production: 3 pods at least, scaled"): [warm[2], str(most)],
        ("2.2", "production: primary, replica and backup"): [
            str(production["Cluster", "postgres"]["spec"]["instances"])
        ],
        ("2.2", "production: Redis cluster of 6"): [str(cache_nodes[1])],
        ("4.2", "LOG_LEVEL"): [setting("production", "LOG_LEVEL")],
        ("4.2", "ENVIRONMENT"): [setting("production", "ENVIRONMENT")],
        ("4.2", "DB_HOST"): [setting("production", "DB_HOST")],
        ("4.2", "DB_PORT"): [setting("production", "DB_PORT")],
        ("4.2", "DB_NAME"): [setting("production", "DB_NAME")],
        ("4.2", "BUSINESS_REGISTRY_API_URL"): [setting("production", "BUSINESS_REGISTRY_API_URL")],
        ("4.2", "EMAIL_SERVICE_URL"): [setting("production", "EMAIL_SERVICE_URL")],
        ("4.2", "SMS_SERVICE_URL"): [setting("production", "SMS_SERVICE_URL")],
        ("4.4", "replicas 3"): [warm[2]],
        ("4.4", "containerPort 8000"): [str(login["ports"][0]["containerPort"])],
        ("4.4", "requests 1000m, 2Gi"): list(login["resources"]["requests"].values()),
        ("4.4", "limits 2000m, 4Gi"): list(login["resources"]["limits"].values()),
        ("4.4", "livenessProbe /health"): [
            live["httpGet"]["path"],
            f"{live['periodSeconds']} s",
            f"{live['timeoutSeconds']} s",
            f"{live['failureThreshold']} failures",
        ],
        ("4.4", "readinessProbe /health"): [login["readinessProbe"]["httpGet"]["path"]],
        ("4.7", "minReplicas 3"): [warm[2]],
        ("4.7", "maxReplicas 10"): [str(most)],
        ("4.7", "CPU 70 %"): [f"{scaling(log_in)['target-utilization-percentage']} %"],
        ("4.7", "scaleDown after 300 s"): [scaling(log_in)["scale-down-delay"]],
        ("4.7", "scaleUp after 60 s"): [scaling(log_in)["window"]],
        ("5.1", "requests 1000m, 2Gi; limits 2000m, 4Gi"): [
            f"{int(part['cpu']) * 1000}m, {part['memory']}" for part in (postgres["requests"], postgres["limits"])
        ],
        ("5.1", "100Gi, ReadWriteOnce"): [
            claim["spec"]["resources"]["requests"]["storage"],
            *claim["spec"]["accessModes"],
        ],
        ("5.1", "storageClassName fast-ssd"): [claim["spec"]["storageClassName"]],
        ("5.3", "backoffLimit 3"): [str(job["backoffLimit"])],
        ("5.3", "restartPolicy OnFailure"): [job["template"]["spec"]["restartPolicy"]],
        ("6.1", "interval 30s"): [function[0]["interval"], relay[0]["interval"]],
        ("8.1", "requests 250m, 512Mi"): [small["requests"]["cpu"]],
        ("8.1", "limits 500m, 1Gi"): [small["limits"]["memory"]],
        ("10.1", "restartPolicy OnFailure"): [
            backup["template"]["spec"]["restartPolicy"],
            f"{backup['backoffLimit']} more tries",
        ],
    }


def is_function(kind: str, item: dict[str, Any]) -> bool:
    return kind == "Service" and item["apiVersion"].startswith("serving.knative.dev/")


def setting(environment: str, name: str) -> str:
    objects = objects_of(environment)
    ((_, config),) = [key for key in objects if key[0] == "ConfigMap" and key[1].startswith("user-service-config")]
    return str(objects["ConfigMap", config]["data"][name])


@pytest.mark.parametrize(
    ("environment", "database_host", "database", "cache", "broker"),
    [
        ("development", "postgres-dev", "aegis_user_dev", "redis-dev", "kafka-dev:9092"),
        ("production", "postgres-prod", "aegis_user", "redis-cluster", "kafka-cluster:9092"),
    ],
)
def test_hosts_are_those_of_the_guide(
    environment: str, database_host: str, database: str, cache: str, broker: str
) -> None:
    objects = objects_of(environment)
    assert setting(environment, "DB_HOST_DIRECT") == database_host
    assert setting(environment, "DB_NAME") == database
    named = "REDIS_HOST" if environment == "development" else "REDIS_URL"
    assert cache in re.split("[/:]", setting(environment, named))
    host, _, port = setting(environment, "KAFKA_BOOTSTRAP_SERVERS").partition(".aegis-user-service.svc.cluster.local")
    assert host + port == broker
    assert objects["Service", database_host]["spec"]["ports"] == [{"name": "postgres", "port": 5432}]
    if environment == "development":
        (made,) = [one for one in container(objects["StatefulSet", "postgres"])["env"] if one["name"] == "POSTGRES_DB"]
        assert made["value"] == database
    assert {database_host, cache, host} <= {name for kind, name in objects if kind == "Service"}


def test_names_and_labels_are_the_guides() -> None:
    objects: Objects = objects_of("production")
    labels = objects["Namespace", "aegis-user-service"]["metadata"]["labels"]
    assert (labels["app"], labels["service"]) == ("aegis", "user-service")
    functions = [item for (kind, _), item in objects.items() if is_function(kind, item)]
    assert {item["spec"]["template"]["metadata"]["labels"]["app"] for item in functions} == {"user-service"}
    (dashboard,) = [
        item["data"][file]
        for (kind, _), item in objects.items()
        if kind == "ConfigMap"
        for file in item["data"]
        if file.endswith(".json")
    ]
    for stated in ('"title": "Aegis user service"', '"tags": ["aegis", "user-service"]', '"timezone": "browser"'):
        assert re.sub(r"\s", "", stated) in re.sub(r"\s", "", dashboard)


def test_the_image_is_built_as_the_page_says() -> None:
    *stages, final = re.split("^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert stages[0].startswith("python:3.11-slim AS builder\n")
    assert final.startswith("python:3.11-slim\n")
    assert "PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1" in final
    assert "apt-get" not in DOCKERFILE
    assert "--require-hashes --only-binary :all: --requirement requirements.lock" in stages[0]
    assert "USER 10001:10001" in final
    assert "EXPOSE 8080" in final
    assert "HEALTHCHECK" in final
    assert "/health/live" in final
