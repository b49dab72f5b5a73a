"""The OpenAPI document against the functions: no operation is left out, and each is described."""

import json
import os
import re
import urllib.request
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from shared import openapi
from shared.registry import HTTP_FUNCTIONS, load_all


@pytest.fixture(scope="module")
def document() -> Any:
    load_all()
    return openapi.document(HTTP_FUNCTIONS.values(), os.environ["PUBLIC_URL"])


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
        assert operation["security"] == ([{"access_token": []}] if function.authenticated else [])
        assert "431" in responses
        assert "401" in responses or not function.authenticated
        for problem in function.problems:
            shown = responses[str(problem.status)]["content"]["application/problem+json"]["examples"]
            assert shown[problem.__name__]["value"]["type"] == problem.type_uri()


def test_the_document_says_where_the_service_is(document: Any) -> None:
    assert document["servers"] == [{"url": os.environ["PUBLIC_URL"]}]
    assert document["externalDocs"]["url"] == f"{os.environ['PUBLIC_URL']}/asyncapi.json"


def test_no_schema_has_a_property_of_its_own_name(document: Any) -> None:
    for name, schema in document["components"]["schemas"].items():
        assert re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() not in schema.get("properties", {})


def test_what_a_request_requires_is_no_option_in_a_go_client(document: Any) -> None:
    assert "writeOnly" not in json.dumps(document)
