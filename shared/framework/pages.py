"""Pages by key: each begins after the last id of the one before, so that the thousandth costs as much as the first."""

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
"""Whole groups of base64, so that each cursor has one spelling."""


def encode(last: UUID) -> str:
    """The cursor of the page after this id: base64url of the id and a truncated HMAC-SHA-256 of it."""
    return base64.urlsafe_b64encode(last.bytes + _mac(last.bytes)).decode()


def decode(cursor: str) -> UUID:
    """The id that a cursor of ours is for.

    Raises:
        ValueError: it is none of ours.
    """
    if re.fullmatch(_CURSOR, cursor):
        content = base64.urlsafe_b64decode(cursor)
        last = content[:_ID_BYTES]
        if hmac.compare_digest(content[_ID_BYTES:], _mac(last)):
            return UUID(bytes=last)
    raise PydanticCustomError("cursor", "This is no cursor of ours. Take it from the header Link of the page before.")


def _mac(last: bytes) -> bytes:
    return keyed_hash(_PURPOSE, last)[:_MAC_BYTES]


def _decimal(text: str) -> int:
    # Pydantic takes " 5", "5.0" and "1_0" for integers as well.
    if re.fullmatch("0|-?[1-9][0-9]{0,9}", text):
        return int(text)
    raise PydanticCustomError("integer", "This is not a whole number.")


class PageQuery(QueryParameters):
    """Which page of a list."""

    cursor: Annotated[
        UUID | None,
        BeforeValidator(decode),
        WithJsonSchema({"type": "string"}),
        Field(description="Where the page begins: from the header Link of the page before."),
    ] = None
    limit: Annotated[
        # The bounds come first: behind the validator, the schema would not have them as minimum and maximum.
        int,
        Field(ge=1, le=100, description="So many at most; 50 when it is not given."),
        BeforeValidator(_decimal),
    ] = 50


def split(rows: Sequence[T], path: str, query: PageQuery) -> tuple[Sequence[T], dict[str, str]]:
    """The rows of a page, and the header Link (RFC 8288) to the next one where there is one.

    Args:
        rows: one more than the limit where there are so many, each with its `id`.
        path: of the list; the link is relative, and keeps all of the query but the cursor.
    """
    if len(rows) <= query.limit:
        return rows, {}
    page = rows[: query.limit]
    last: Any = page[-1]
    parameters = query.model_dump(mode="json", exclude_none=True, exclude={"cursor"})
    target = f"{path}?{urlencode({**parameters, 'cursor': encode(last.id)})}"
    return page, {"Link": f'<{target}>; rel="next"'}
