"""The OpenAPI document against the functions: no operation is left out, and each is described."""

import json
import os
import urllib.request
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from shared import openapi
from shared.registry import HTTP_FUNCTIONS, load_all


@pytest.fixture(scope="module")
def document() -> Any:
    load_all()
    return openapi.document(HTTP_FUNCTIONS.values())


def test_the_document_is_served(document: Any) -> None:
    with urllib.request.urlopen(f"{os.environ['PUBLIC_URL']}/openapi.json", timeout=10) as response:
        assert json.load(response) == json.loads(json.dumps(document))


def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_has_every_operation_and_no_other(document: Any) -> None:
    operations = {
        (operation["operationId"], method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert operations == {
        (function.name, function.method, function.path) for function in HTTP_FUNCTIONS.values() if function.path != "/*"
    }


def test_each_operation_is_described_for_who_calls_it(document: Any) -> None:
    for function in HTTP_FUNCTIONS.values():
        if function.path == "/*":
            continue
        operation = document["paths"][function.path][function.method.lower()]
        assert operation["summary"]
        assert operation["description"]
        responses = operation["responses"]
        assert "503" in responses
        assert ("security" in operation) == function.authenticated
        assert "401" in responses or not function.authenticated
        for problem in function.problems:
            shown = responses[str(problem.status)]["content"]["application/problem+json"]["examples"]
            assert shown[problem.__name__]["value"]["type"] == problem.type_uri()
