"""The examples of docs/tokens.md in Node, Go and Spring: `make test-clients`. Their packages come from registries."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import urllib3
import yaml

from knative.local.servers import LOOPBACK, free_port, is_listening
from knative.local.supervisor import Process, Supervisor
from tests.conftest import ROOT, User, bearer
from tests.knative.test_crds import of_object, problems
from tests.token_examples import example, good_alone, tokens

ISTIO = "istio.io/api@v1.28.1"
PROJECTS = ROOT / "tests" / "clients"


def project(name: str, folder: Path, *tools: str) -> Path:
    """A copy of a project, to put the example into; skips the test where a tool is not installed."""
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"NO {' AND NO '.join(missing).upper()} HERE: the example of docs/tokens.md for {name} was not run")
    return shutil.copytree(PROJECTS / name, folder / name)


def run(folder: Path, *command: str, given: str = "") -> str:
    """What a command prints; fails with all that it has said."""
    done = subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(folder: Path, user: User, *command: str) -> None:
    """Checks a program that gets the tokens by name, and tells the subject of each: null where it refuses it."""
    given = tokens(user)
    assert json.loads(run(folder, *command, given=json.dumps(given))) == good_alone(user, given)


def test_the_example_in_node_accepts_good_tokens_alone(tmp_path: Path, active_user: User) -> None:
    folder = project("node", tmp_path, "node", "npm")
    (folder / "verify.js").write_text(example("Node", "js"))
    run(folder, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    check(folder, active_user, "node", "main.js")


def test_the_example_in_go_accepts_good_tokens_alone(tmp_path: Path, active_user: User) -> None:
    folder = project("go", tmp_path, "go")
    (folder / "verify.go").write_text(example("Go", "go"))
    run(folder, "go", "build", "-o", "orders", ".")
    check(folder, active_user, "./orders")


def test_the_example_of_istio_is_as_its_crds_say() -> None:
    if not shutil.which("go"):
        pytest.skip("NO GO HERE: the example of docs/tokens.md for Istio was not held against its CRDs")
    module = json.loads(run(ROOT, "go", "mod", "download", "-json", ISTIO))
    crds = Path(module["Dir"], "kubernetes", "customresourcedefinitions.gen.yaml").read_text()
    schemas = {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): of_object(
            version["schema"]["openAPIV3Schema"]
        )
        for crd in yaml.load_all(crds, yaml.CSafeLoader)
        if crd
        for version in crd["spec"]["versions"]
    }
    resources = list(yaml.safe_load_all(example("Envoy", "yaml", 1)))
    assert {resource["kind"] for resource in resources} == {"RequestAuthentication", "AuthorizationPolicy"}
    assert list(problems(schemas, resources)) == []


def test_the_example_of_spring_accepts_good_tokens_alone(
    tmp_path: Path, supervisor: Supervisor, active_user: User
) -> None:
    folder = project("spring", tmp_path, "java", "mvn")
    settings = folder / "src" / "main" / "resources" / "application.yaml"
    settings.parent.mkdir()
    settings.write_text(example("Spring", "yaml"))
    code = folder / "src" / "main" / "java" / "com" / "example" / "orders" / "AccessTokens.java"
    code.write_text("package com.example.orders;\n\n" + example("Spring", "java"))
    run(folder, "mvn", "--batch-mode", "--quiet", "package")

    port = free_port()
    command = ["java", "-jar", str(folder / "target" / "orders.jar"), f"--server.port={port}"]
    process = Process("spring", command, {}, is_ready=lambda: is_listening(port))
    supervisor.start(process)
    supervisor.wait_until_ready(process, seconds=120)
    url = f"http://{LOOPBACK}:{port}/"
    answers = {
        name: urllib3.request("GET", url, headers=bearer({"access_token": token}), timeout=60)
        for name, token in tokens(active_user).items()
    }
    assert {answer.status for answer in answers.values()} == {200, 401}
    found = {name: answer.data.decode() if answer.status == 200 else None for name, answer in answers.items()}
    assert found == good_alone(active_user, answers)
