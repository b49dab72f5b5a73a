"""The OpenAPI 3.1 document, made from the decorators of the functions."""

import inspect
import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from shared.framework import idempotency
from shared.framework.http_function import JSON, MEDIA_TYPES, RECENT_SECONDS
from shared.framework.registry import HttpFunction
from shared.identity import access_tokens, live_sessions, sessions
from shared.runtime import problems
from shared.runtime.problems import Problem, ProblemDetails

_SCHEMAS = "#/components/schemas/{model}"
_BODY_PROBLEMS = (
    problems.MalformedRequest,
    problems.BodyTooLarge,
    problems.UnsupportedMediaType,
    problems.UnsupportedContentEncoding,
    problems.InvalidRequest,
    problems.UnsupportedTransferCoding,
)


def document(functions: Iterable[HttpFunction], url: str) -> dict[str, Any]:
    """Return the document for these functions, served at a URL such as https://api.example.com, as a JSON object."""
    operations = [function for function in functions if function.path != "/*"]
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for function in sorted(operations, key=lambda function: (function.path, function.method)):
        paths.setdefault(function.path, {})[function.method.lower()] = _operation(function, schemas)
    schemas["ProblemDetails"] = _schema(ProblemDetails, schemas)
    schemas["ProblemDetails"]["properties"]["type"]["enum"] = _problem_types(operations)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Aegis user service",
            "version": "1.0.0",
            "description": (
                "Every error is a problem detail (RFC 9457) with a stable `type`. "
                "Each field error has a stable `code` that you can translate. Send `X-Request-Id` to find your request "
                "in the logs; the response returns it. Every POST accepts an `Idempotency-Key`; the other methods can "
                "be repeated without one. After a 401, refresh the access token once, then log in. After a 429 or 503, "
                "wait for `Retry-After`."
            ),
            "contact": contact(url),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": url}],
        "externalDocs": {
            "url": f"{url}/asyncapi.json",
            "description": "The events that the service announces (AsyncAPI)",
        },
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"access_token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def contact(url: str) -> dict[str, str]:
    """Return the contact for readers of this document and of the AsyncAPI document."""
    return {"name": "Aegis user service", "url": url, "email": "support@aegis.example.com"}


def _operation(function: HttpFunction, schemas: dict[str, Any]) -> dict[str, Any]:
    first, _, rest = (inspect.getdoc(function.handler) or "").partition("\n")
    operation: dict[str, Any] = {
        "operationId": function.name,
        "summary": first.rstrip("."),
        "description": "\n\n".join(
            filter(None, [re.sub(r"(?<!\n)\n(?!\n)", " ", rest.strip()), *_conditions(function)])
        ),
        "tags": [tag(function)],
    }
    operation["security"] = [{"access_token": []}] if function.authenticated else []
    if parameters := list(_parameters(function)):
        operation["parameters"] = parameters
    if function.body:
        _, definitions = models_json_schema([(function.body, "validation")], ref_template=_SCHEMAS)
        for definition in definitions["$defs"].values():
            for property_ in definition.get("properties", {}).values():
                property_.pop("writeOnly", None)  # no response has them, and Go clients would make them optional
        _add(schemas, definitions["$defs"])
        media_types = MEDIA_TYPES.get(function.method, (JSON,))
        content = {media_type: {"schema": _ref(function.body.__name__)} for media_type in media_types}
        operation["requestBody"] = {"required": True, "content": content}

    success: dict[str, Any] = {"description": HTTPStatus(function.status).phrase, "headers": dict(_HEADERS)}
    if result := _result(function):
        _add(schemas, {result.__name__: _schema(result, schemas)})
        success["content"] = {JSON: {"schema": _ref(result.__name__)}}
        if function.method in ("GET", "PATCH"):
            success["headers"]["ETag"] = {
                "schema": {"type": "string"},
                "description": "Identifies this state (RFC 9110, 8.8.3).",
            }
        if function.query:
            success["headers"]["Link"] = {
                "schema": {"type": "string"},
                "description": 'The next page: rel="next" (RFC 8288).',
            }
    operation["responses"] = {str(function.status): success, **_problem_responses(function)}
    return operation


_HEADERS = {
    "X-Request-Id": {"schema": {"type": "string"}, "description": "Identifies the request in the logs."},
    "RateLimit": {"schema": {"type": "string"}, "description": "What is left of the limit closest to being reached."},
    "RateLimit-Policy": {"schema": {"type": "string"}, "description": "That limit: requests (q) per seconds (w)."},
}


def _conditions(function: HttpFunction) -> Iterator[str]:
    if function.role:
        yield "**For administrators, in a session with a second factor.**"
    if function.recent_login:
        minutes = RECENT_SECONDS // 60
        yield f"**Requires a log-in within the last {minutes} minutes** (RFC 9470). A new log-in starts a new session."
    if function.strongest_factor:
        yield "**Requires a session with the strongest factor of the account**: a passkey, else the authenticator app."


TAGS = {
    "Users": "Registration, verification, forgotten passwords.",
    "Sessions": (
        f"An access token is valid for {access_tokens.LIFETIME_SECONDS // 60} minutes, a refresh token for one use, a "
        f"session for {sessions.LIFETIME.days} days, or {live_sessions.IDLE_LIFETIME.days} days without use."
    ),
    "Account": "What users can read and change about themselves.",
    "Second factors": "Authenticator app, recovery codes, passkeys.",
    "Administration": "For the role admin.",
}
_JOINING = re.compile(r"/api/v1/users(/email/.*|/password/.*)?")
_FACTORS = re.compile(r"/api/v1/users/me/(totp|passkeys).*")


def tag(function: HttpFunction) -> str:
    """Return the group of an operation: one of `TAGS`."""
    if function.role:
        return "Administration"
    if _JOINING.fullmatch(function.path):
        return "Users"
    if _FACTORS.fullmatch(function.path):
        return "Second factors"
    return "Account" if "/me" in function.path else "Sessions"


def _parameters(function: HttpFunction) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", function.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    if function.query:
        schema = function.query.model_json_schema()
        for name, property_ in schema["properties"].items():
            # A parameter can be absent, but not null.
            variants = [each for each in property_.pop("anyOf", []) if each.get("type") != "null"]
            description = property_.pop("description", "")
            property_.pop("default", None)
            yield {
                "name": name,
                "in": "query",
                "description": description,
                "required": name in schema.get("required", ()),
                "schema": {**property_, **(variants[0] if variants else {})},
            }
    if function.keeps_answers:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "description": (
                "A UUID in double quotes, new for each request. Sending the request again with the same key within a "
                "day returns the first response again, with the header Idempotency-Replayed."
            ),
            "schema": {"type": "string", "pattern": '^"[ !#-\\[\\]-~]{16,255}"$'},
            "example": '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
        }
    if function.knows_devices:
        yield {
            "name": "Device-Token",
            "in": "header",
            "description": (
                "The newest `device_token` that this device got from a log-in or a refresh. Store it with the refresh "
                "token, and keep it after a log-out. With it, the limits of this device apply instead of those of the "
                "account, which others may have used up. Valid for 90 days, until the password or the address changes; "
                "an invalid one is ignored."
            ),
            "schema": {"type": "string"},
        }
    if "if_match" in function.takes:
        yield {
            "name": "If-Match",
            "in": "header",
            "description": "The ETag of the state to change; returns 412 if the state is another.",
            "schema": {"type": "string"},
        }


def _result(function: HttpFunction) -> Any:
    """Return the TypedDict that a handler returns; None for a response without a body."""
    alternatives = getattr(function.returns, "__args__", (function.returns,))
    return next((each for each in alternatives if each not in (bytes, type(None))), None)


ANYWHERE: tuple[type[Problem], ...] = (
    problems.NotFound,
    problems.MethodNotAllowed,
    problems.MalformedRequest,
    problems.MisdirectedRequest,
    problems.InternalError,
)
"""Problems that any operation can return, so that no operation lists them."""


def _problem_types(functions: Iterable[HttpFunction]) -> list[str]:
    """Return the type of every problem that a caller can get."""
    kinds = {*ANYWHERE, *(kind for function in functions for kind in problems_of(function))}
    return sorted(kind.type_uri() for kind in kinds)


def problems_of(function: HttpFunction) -> list[type[Problem]]:
    """Return the problems that the document lists for an operation, by status."""
    kinds: list[type[Problem]] = [*function.problems, problems.TooManyRequests, problems.ServiceUnavailable]
    kinds.extend((problems.RequestTimeout, problems.HeadersTooLarge))
    if function.authenticated:
        kinds.append(problems.Unauthenticated)
    if function.role:
        kinds.append(problems.Forbidden)
    if function.strongest_factor:
        kinds.append(problems.ReauthenticationRequired)
    if function.body:
        kinds.extend(_BODY_PROBLEMS)
    if function.query:
        kinds.append(problems.InvalidRequest)
    if "{" in function.path:
        kinds.append(problems.NotFound)
    if "if_match" in function.takes:
        kinds.append(problems.PreconditionFailed)
    if function.keeps_answers:
        kinds.extend(idempotency.PROBLEMS)
    return sorted(dict.fromkeys(kinds), key=lambda kind: kind.status)


def _problem_responses(function: HttpFunction) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for kind in problems_of(function):
        response = responses.setdefault(
            str(kind.status),
            {
                "description": "",
                "headers": dict(_HEADERS),
                "content": {"application/problem+json": {"schema": _ref("ProblemDetails"), "examples": {}}},
            },
        )
        problem = kind()
        response["description"] += f"{' or ' if response['description'] else ''}{kind.title}"
        response["headers"] |= {name: {"schema": {"type": "string"}} for name in problem.headers}
        shown = problem.body("…")
        if kind is problems.HeadersTooLarge:
            del shown["request_id"]  # the router could not read the headers
        response["content"]["application/problem+json"]["examples"][kind.__name__] = {"value": shown}
    return responses


def _schema(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(model).json_schema(ref_template=_SCHEMAS)
    _add(schemas, schema.pop("$defs", {}))
    return schema


def _add(schemas: dict[str, Any], new: dict[str, Any]) -> None:
    """Add schemas by name. Two different schemas must not have the same name."""
    for name, schema in new.items():
        if schemas.setdefault(name, schema) != schema:
            raise ValueError(f"two different models are called {name}")


def _ref(model: str) -> dict[str, str]:
    return {"$ref": _SCHEMAS.format(model=model)}
