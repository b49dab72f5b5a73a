"""The function framework: decorators, registry, idempotency, OpenAPI, AsyncAPI, server. Imports all other packages."""
