# `make` alone lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PYTHONPATH := $(CURDIR)
unexport PYTHONDONTWRITEBYTECODE # or each process compiles all of its modules anew, which takes seconds

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

up: setup-local  ## run the whole service on this machine (PORT=8080 DATA_DIR=.local REPLICA=1)
	@exec $(BIN)/python -m knative.local.up

test: setup  ## run the tests, but for the slow ones: under four minutes on two cores
	@$(BIN)/python -m pytest -m "not slow"

test-slow: setup  ## run the slow tests, which start more services or measure time
	@$(BIN)/python -m pytest -m slow -n 2

coverage: setup  ## run all of these tests, and list the lines of functions/ and shared/ that none of them reaches
	@$(BIN)/python -m pytest --cov=functions --cov=shared --cov-report=term-missing:skip-covered

tour: setup-local  ## call every operation once, step by step (URL=http://localhost:8080)
	@$(BIN)/python -m tests.tour

fuzz: setup  ## send random input to every operation (EXAMPLES=300 for each)
	@EXAMPLES=$${EXAMPLES:-300} $(BIN)/python -m pytest tests/contract -n 0

test-kafka: setup  ## run the event tests on Apache Kafka (KAFKA=../shared/kafka/kafka, a command that starts one)
	@export KAFKA="$(or $(KAFKA),../shared/kafka/kafka)" KAFKA_DATA="$(CURDIR)/.local/kafka"; \
	command -v "$$KAFKA" >/dev/null || { echo "There is no command $$KAFKA. Set KAFKA= to one that starts Apache Kafka: 'KAFKA up PORT' prints its HOST:PORT, 'KAFKA down' stops it." >&2; exit 1; }; \
	KAFKA_BOOTSTRAP_SERVERS=$$("$$KAFKA" up 19092) || exit 1; trap '"$$KAFKA" down' EXIT; export KAFKA_BOOTSTRAP_SERVERS; \
	$(BIN)/python -m pytest -n 0 tests/shared/test_relay.py tests/shared/test_consumer_lag.py tests/shared/test_dispatcher.py tests/test_end_to_end.py tests/test_tour.py

test-clients: setup  ## run the examples of docs/tokens.md in Node, Go and Spring, if installed
	@$(BIN)/python -m pytest tests/clients -n 0

test-faults: setup  ## kill processes under load and check that nothing is lost or duplicated (SEED= SECONDS=200)
	@$(BIN)/python -m pytest tests/faults -n 0 -s

test-cluster: setup  ## run the tests on the current kube context (IMAGE= PROMETHEUS_URL= ENVIRONMENT=development TESTS=)
	@$(BIN)/python -m pytest $(or $(TESTS),tests/cluster) -n 0 -s

loadtest: setup  ## put load on the service and fail if an alert would fire (SCENARIO=smoke URL= USERS= DURATION= PROMETHEUS_URL= COMPARE=)
	@$(BIN)/python -m loadtests.run

loadtest-compare: setup  ## on a cluster: the same spike on Knative and on the guide's Deployment with HPA (URL= IMAGE= USERS=)
	@$(BIN)/python -m loadtests.compare

bench: setup  ## measure performance against baselines in the same run (JSON=)
	@$(BIN)/python -m tests.bench

bench-scale: setup  ## compare latency with a million and a thousand accounts: ten minutes, 6 GB of disk (JSON=)
	@$(BIN)/python -m tests.bench growth

bench-cluster: setup  ## on a cluster: measure cold starts and the capacity of a pod of each function (JSON= WHAT=zero)
	@$(BIN)/python -m tests.bench.cluster $(WHAT)

check: setup  ## lint code and API documents, check format, types, imports and generated files, render and validate the manifests
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m knative.generate --check
	@$(BIN)/python -m knative.check
	@$(BIN)/python -m tests.documents

generate: setup  ## write manifests, event schemas and pages of docs from functions and settings
	@$(BIN)/python -m knative.generate

secrets: setup-local  ## create the secrets of the overlays development and staging, once
	@$(BIN)/python -m knative.keys knative/overlays/{development,staging}/data/secrets.env

setup:  ## install everything that these targets need
	@$(PYTHON) knative/local/setup.py requirements-dev.lock

setup-local:
	@$(PYTHON) knative/local/setup.py requirements-local.lock

lock: setup  ## update the lock files from pyproject.toml
	@$(BIN)/uv pip compile --system-certs -q pyproject.toml --universal --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	@$(BIN)/uv pip compile --system-certs -q pyproject.toml --group dev -c requirements.lock --universal --generate-hashes --no-emit-index-url --no-header -o requirements-dev.lock
	@$(BIN)/uv pip compile --system-certs -q pyproject.toml --group local -c requirements-dev.lock --universal --generate-hashes --no-emit-index-url --no-header -o requirements-local.lock

.PHONY: help up test test-slow coverage tour fuzz test-kafka test-clients test-faults test-cluster loadtest loadtest-compare bench bench-scale bench-cluster check generate secrets setup setup-local lock
