"""Keyset pagination: a page begins after the last id of the previous page, so that every page costs the same."""

import base64
import hmac
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.identity.encryption import keyed_hash
from shared.text.fields import QueryParameters

T = TypeVar("T")

_PURPOSE = "page cursor"
_ID_BYTES, _MAC_BYTES = 16, 8
_CURSOR = "[A-Za-z0-9_-]{32}"
"""Whole groups of base64, so that each cursor has only one spelling."""


def encode(last: UUID) -> str:
    """Return the cursor of the page after this id: base64url of the id and a truncated HMAC-SHA-256 of it."""
    return base64.urlsafe_b64encode(last.bytes + _mac(last.bytes)).decode()


def decode(cursor: str) -> UUID:
    """Return the id in a cursor.

    Raises:
        ValueError: the cursor is not valid.
    """
    if re.fullmatch(_CURSOR, cursor):
        content = base64.urlsafe_b64decode(cursor)
        last = content[:_ID_BYTES]
        if hmac.compare_digest(content[_ID_BYTES:], _mac(last)):
            return UUID(bytes=last)
    raise PydanticCustomError("cursor", "The cursor is not valid. Take it from the Link header of the previous page.")


def _mac(last: bytes) -> bytes:
    return keyed_hash(_PURPOSE, last)[:_MAC_BYTES]


def _decimal(text: str) -> int:
    # Pydantic also accepts " 5", "5.0" and "1_0" as integers.
    if re.fullmatch("0|-?[1-9][0-9]{0,9}", text):
        return int(text)
    raise PydanticCustomError("integer", "This is not a whole number.")


class PageQuery(QueryParameters):
    """A page of a list."""

    cursor: Annotated[
        UUID | None,
        BeforeValidator(decode),
        WithJsonSchema({"type": "string"}),
        Field(description="Where the page begins: from the Link header of the previous page."),
    ] = None
    limit: Annotated[
        # The bounds come before the validator, so that the schema has them as minimum and maximum.
        int,
        Field(ge=1, le=100, description="The maximum number of items, 50 by default."),
        BeforeValidator(_decimal),
    ] = 50


def split(rows: Sequence[T], path: str, query: PageQuery) -> tuple[Sequence[T], dict[str, str]]:
    """Return the rows of a page, and the Link header (RFC 8288) to the next page if there is one.

    Args:
        rows: up to one more than the limit, each with its `id`.
        path: of the list. The link is relative, and keeps the query except for the cursor.
    """
    if len(rows) <= query.limit:
        return rows, {}
    page = rows[: query.limit]
    last: Any = page[-1]
    parameters = query.model_dump(mode="json", exclude_none=True, exclude={"cursor"})
    target = f"{path}?{urlencode({**parameters, 'cursor': encode(last.id)})}"
    return page, {"Link": f'<{target}>; rel="next"'}
