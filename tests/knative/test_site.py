"""The documents and pages of the site, as browsers, proxies and code generators fetch them through the router."""

import gzip
import http.client
import json
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

DOCUMENTS = (
    "/",
    "/openapi.json",
    "/asyncapi.json",
    "/docs/",
    "/docs/swagger-ui.css",
    "/verify-email",
    "/reset-password",
    "/undo-email-change",
)
LARGE = ("/", "/openapi.json", "/asyncapi.json", "/docs/", "/docs/swagger-ui.css", "/static/page.css")


@pytest.fixture
def connection() -> Iterator[http.client.HTTPConnection]:
    """To the running service, without any header of its own."""
    address = urlsplit(os.environ["PUBLIC_URL"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    yield connection
    connection.close()


def fetch(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Sends no Accept-Encoding that is not among the headers."""
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    return response, response.read()


def varies(response: http.client.HTTPResponse) -> set[str]:
    return {name.strip().lower() for name in response.headers.get("Vary", "").split(",")}


@pytest.mark.parametrize("path", LARGE)
def test_a_document_comes_compressed_to_who_takes_that(connection: http.client.HTTPConnection, path: str) -> None:
    plain, content = fetch(connection, path)
    packed, compressed = fetch(connection, path, Accept_Encoding="br;q=1.0, gzip;q=0.8")
    assert (plain.status, packed.status) == (200, 200)
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(compressed) == content
    assert len(compressed) < len(content) * 0.7
    assert "accept-encoding" in varies(plain) & varies(packed)


@pytest.mark.parametrize("refused", ["identity", "gzip;q=0", "br"])
def test_a_document_comes_as_it_is_to_who_takes_no_gzip(connection: http.client.HTTPConnection, refused: str) -> None:
    response, content = fetch(connection, "/openapi.json", Accept_Encoding=refused)
    assert "Content-Encoding" not in response.headers
    assert json.loads(content)["openapi"]


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_document_that_has_not_changed_is_not_sent_again(
    connection: http.client.HTTPConnection, path: str, encoding: str
) -> None:
    first, _ = fetch(connection, path, Accept_Encoding=encoding)
    tag = first.headers["ETag"]
    assert tag.startswith('W/"')  # the same for both encodings, which are not the same bytes (RFC 9110, 8.8.3)
    for named in (tag, tag.removeprefix("W/"), f'"another", {tag}', "*"):
        again, content = fetch(connection, path, Accept_Encoding=encoding, If_None_Match=named)
        assert (again.status, content) == (304, b"")
        assert again.headers["ETag"] == tag
        assert again.headers["Cache-Control"] == first.headers["Cache-Control"] == "no-cache"
        assert varies(again) >= {"accept-encoding"}
    changed, content = fetch(connection, path, Accept_Encoding=encoding, If_None_Match='W/"another"')
    assert changed.status == 200
    assert content


def test_head_tells_what_get_would(connection: http.client.HTTPConnection) -> None:
    head, content = fetch(connection, "/openapi.json", "HEAD")
    got, document = fetch(connection, "/openapi.json")
    assert (head.status, content) == (200, b"")
    assert head.headers["ETag"] == got.headers["ETag"]
    assert int(head.headers["Content-Length"]) == len(document)


def test_a_part_of_a_file_is_not_compressed(connection: http.client.HTTPConnection) -> None:
    whole, content = fetch(connection, "/docs/swagger-ui.css")
    part, middle = fetch(connection, "/docs/swagger-ui.css", Accept_Encoding="gzip", Range="bytes=10-5009")
    assert (part.status, part.headers["ETag"]) == (206, whole.headers["ETag"])
    assert "Content-Encoding" not in part.headers
    assert middle == content[10:5010]


def test_a_page_is_kept_for_one_language_alone(connection: http.client.HTTPConnection) -> None:
    korean, _ = fetch(connection, "/verify-email", Accept_Language="ko-KR, ko;q=0.9, en;q=0.5")
    english, _ = fetch(connection, "/verify-email", Accept_Language="fr, en;q=0.5")
    assert (korean.headers["Content-Language"], english.headers["Content-Language"]) == ("ko", "en")
    assert korean.headers["ETag"] != english.headers["ETag"]
    assert varies(korean) >= {"accept-language", "accept-encoding"}


def test_what_holds_secrets_is_neither_compressed_nor_kept(connection: http.client.HTTPConnection) -> None:
    """The size of a compressed answer tells of the secrets in it (BREACH): mails hold links, answers hold tokens."""
    login = "/api/v1/users/login"
    for path, accept in (("/inbox", "text/html"), ("/inbox", "application/json"), (login, "application/json")):
        response, _ = fetch(connection, path, Accept=accept, Accept_Encoding="gzip")
        assert "Content-Encoding" not in response.headers
        assert response.headers["Cache-Control"] == "no-store"
        assert "ETag" not in response.headers


@pytest.mark.parametrize("name", ["jwks.json", "openid-configuration", "oauth-authorization-server"])
def test_the_documents_on_tokens_can_be_kept_and_asked_for_again(
    connection: http.client.HTTPConnection, name: str
) -> None:
    first, _ = fetch(connection, f"/.well-known/{name}", Accept_Encoding="gzip")
    assert first.headers["Cache-Control"] == "public, max-age=300"
    again, content = fetch(connection, f"/.well-known/{name}", If_None_Match=first.headers["ETag"])
    assert (again.status, content) == (304, b"")
    assert again.headers["Cache-Control"] == first.headers["Cache-Control"]
