"""The OpenAPI document against the functions: no operation is left out, and each is described."""

import inspect
import json
import os
import re
import urllib.request
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from shared.framework import openapi
from shared.framework.registry import EVENT_FUNCTIONS, HTTP_FUNCTIONS, load_all
from shared.runtime import problems
from shared.runtime.problems import Problem

pytestmark = pytest.mark.no_service


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


def test_tokens_come_from_the_documented_ways_to_log_in_alone(document: Any) -> None:
    """ASVS 5.0, 6.1.3 and 6.3.4."""
    schemas = document["components"]["schemas"].items()
    tokens = [name for name, schema in schemas if "access_token" in schema.get("properties", {})]
    assert tokens
    ways = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if any(f'"#/components/schemas/{name}"' in json.dumps(operation["responses"]) for name in tokens)
    }
    login = "/api/v1/users/login"
    assert ways == {login, f"{login}/second-factor", f"{login}/passkey", "/api/v1/users/token/refresh"}


def test_each_operation_is_limited_for_each_address_account_and_mailbox() -> None:
    """ASVS 5.0, 2.4.1."""
    load_all()
    for function in HTTP_FUNCTIONS.values():
        expected = {"address"}
        if function.authenticated:
            expected.add("account")
        if function.body and "email" in function.body.model_fields:
            # A guess counts for the account that it is at; a mail for the mailbox that it goes to.
            expected.add("email" if function.name == "login" else "mailbox")
        assert function.limits.keys() >= expected, function.name


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


def test_the_members_that_every_error_has_are_required(document: Any) -> None:
    schema = document["components"]["schemas"]["ProblemDetails"]
    assert set(schema["required"]) == {"type", "title", "status", "detail"}
    assert schema["properties"]["request_id"]["type"] == "string"


def test_the_types_of_errors_are_listed_and_those_that_no_caller_gets_are_not(document: Any) -> None:
    listed = document["components"]["schemas"]["ProblemDetails"]["properties"]["type"]["enum"]
    shown = {
        example["value"]["type"]
        for methods in document["paths"].values()
        for operation in methods.values()
        for response in operation["responses"].values()
        for example in response.get("content", {}).get("application/problem+json", {}).get("examples", {}).values()
    }
    anywhere = {kind.type_uri() for _, kind in inspect.getmembers(problems, is_problem)}
    assert listed == sorted(shown | anywhere)
    of_providers = {
        kind.type_uri()
        for function in EVENT_FUNCTIONS.values()
        for _, kind in inspect.getmembers(inspect.getmodule(function.handler), is_problem)
    }
    assert "urn:aegis:problem:text-refused" in of_providers
    assert (of_providers - anywhere).isdisjoint(listed)


def is_problem(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Problem) and value is not Problem


def test_an_id_is_said_to_be_a_uuid_unless_another_standard_makes_it(document: Any) -> None:
    ids = {
        name: schema["properties"]["id"].get("format")
        for name, schema in document["components"]["schemas"].items()
        if "id" in schema.get("properties", {})
    }
    of_webauthn = {"CredentialDescriptor", "NewCredential", "RelyingParty", "UsedCredential", "UserEntity"}
    assert {name for name, format_ in ids.items() if format_ != "uuid"} == of_webauthn


def test_a_time_and_a_day_have_their_format(document: Any) -> None:
    for schema in document["components"]["schemas"].values():
        for name, property_ in schema.get("properties", {}).items():
            wanted = "date-time" if name.endswith("_at") else "date" if name.endswith("_on") else None
            assert wanted in (None, *(each.get("format") for each in [property_, *property_.get("anyOf", ())])), name


def test_the_document_says_whom_to_ask_and_on_what_terms_it_may_be_used(document: Any) -> None:
    assert document["info"]["license"] == {"name": "MIT", "identifier": "MIT"}
    assert document["info"]["contact"].keys() == {"name", "url", "email"}


def test_the_length_of_a_page_has_its_bounds(document: Any) -> None:
    parameters = document["paths"]["/api/v1/users"]["get"]["parameters"]
    (schema,) = [parameter["schema"] for parameter in parameters if parameter["name"] == "limit"]
    assert (schema["minimum"], schema["maximum"]) == (1, 100)
