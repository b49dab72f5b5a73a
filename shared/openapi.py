"""The OpenAPI 3.1 document, made from what the decorators of the functions state."""

import inspect
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from shared import problems
from shared.problems import Problem, ProblemDetails
from shared.registry import HttpFunction

_SCHEMAS = "#/components/schemas/{model}"
_BODY_PROBLEMS = (
    problems.MalformedRequest,
    problems.BodyTooLarge,
    problems.UnsupportedMediaType,
    problems.InvalidRequest,
)


def document(functions: Iterable[HttpFunction]) -> dict[str, Any]:
    """The document for these functions, as a JSON object."""
    operations = [function for function in functions if function.path != "/*"]
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for function in sorted(operations, key=lambda function: (function.path, function.method)):
        paths.setdefault(function.path, {})[function.method.lower()] = _operation(function, schemas)
    schemas["ProblemDetails"] = _schema(ProblemDetails, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Aegis user service",
            "version": "1.0.0",
            "description": (
                "Every error is a problem detail (RFC 9457) with a stable `type`. "
                "Send `X-Request-Id` to find your request in the logs; the answer carries it."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"access_token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(function: HttpFunction, schemas: dict[str, Any]) -> dict[str, Any]:
    first, _, rest = (inspect.getdoc(function.handler) or "").partition("\n")
    operation: dict[str, Any] = {
        "operationId": function.name,
        "summary": first.rstrip("."),
        "description": re.sub(r"(?<!\n)\n(?!\n)", " ", rest.strip()),
        "tags": ["users"],
    }
    if function.authenticated:
        operation["security"] = [{"access_token": []}]
    if function.body:
        _, definitions = models_json_schema([(function.body, "validation")], ref_template=_SCHEMAS)
        schemas |= definitions["$defs"]
        operation["requestBody"] = {"required": True, "content": _json(function.body.__name__)}

    success: dict[str, Any] = {"description": HTTPStatus(function.status).phrase, "headers": _REQUEST_ID}
    if result := _result(function):
        schemas[result.__name__] = _schema(result, schemas)
        success["content"] = _json(result.__name__)
    operation["responses"] = {str(function.status): success, **_problem_responses(function)}
    return operation


_REQUEST_ID = {"X-Request-Id": {"schema": {"type": "string"}, "description": "Names the request in the logs."}}


def _result(function: HttpFunction) -> Any:
    """The TypedDict that a handler returns; None for an answer without a body."""
    alternatives = getattr(function.returns, "__args__", (function.returns,))
    return next((each for each in alternatives if each not in (bytes, type(None))), None)


def _problem_responses(function: HttpFunction) -> dict[str, Any]:
    kinds: list[type[Problem]] = [*function.problems, problems.ServiceUnavailable]
    if function.authenticated:
        kinds.append(problems.Unauthenticated)
    if function.body:
        kinds.extend(_BODY_PROBLEMS)
    responses: dict[str, Any] = {}
    for kind in sorted(kinds, key=lambda kind: kind.status):
        response = responses.setdefault(
            str(kind.status),
            {
                "description": "",
                "headers": dict(_REQUEST_ID),
                "content": {"application/problem+json": {"schema": _ref("ProblemDetails"), "examples": {}}},
            },
        )
        problem = kind()
        response["description"] += f"{' or ' if response['description'] else ''}{kind.title}"
        response["headers"] |= {name: {"schema": {"type": "string"}} for name in problem.headers}
        response["content"]["application/problem+json"]["examples"][kind.__name__] = {"value": problem.body("…")}
    return responses


def _schema(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(model).json_schema(ref_template=_SCHEMAS)
    schemas |= schema.pop("$defs", {})
    return schema


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(model)}}


def _ref(model: str) -> dict[str, str]:
    return {"$ref": _SCHEMAS.format(model=model)}
