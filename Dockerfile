# One image for all functions; FUNCTION_TARGET picks one. Also the relay, the dispatcher and the migration.
FROM python:3.11-slim AS builder
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock .
RUN /venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check \
      --require-hashes --only-binary :all: --requirement requirements.lock \
    && /venv/bin/pip uninstall --quiet --yes pip setuptools
COPY main.py ./
COPY functions functions
COPY shared shared
COPY knative knative
# A read-only root cannot keep bytecode: compiled here, checked against nothing at start.
RUN python -m compileall -q --invalidation-mode unchecked-hash /venv /app

FROM python:3.11-slim
# Numbers, not names: Kubernetes must see that it is not root.
USER 10001:10001
WORKDIR /app
COPY --from=builder /venv /venv
COPY --from=builder /app /app
# What aegis_build_info says: docker build --build-arg VERSION=v1.2.0.
ARG VERSION=
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PORT=8080 VERSION=$VERSION
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health/live', timeout=2)"]
CMD ["python", "-m", "shared.server"]
