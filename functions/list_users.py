"""Search users, for administrators."""

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from sqlalchemy import ColumnElement, Connection, Select, any_, func, literal, select
from typing_extensions import TypedDict

from shared.framework import pages
from shared.framework.http_function import http_function
from shared.framework.pages import PageQuery
from shared.http.request import Reply
from shared.identity.access_tokens import Caller
from shared.postgresql.replica import read
from shared.postgresql.tables import account, business, folded_name
from shared.text.business_numbers import BusinessNumber
from shared.text.fields import Prefix, mailbox
from shared.text.normalisation import folded
from shared.users import users
from shared.users.phone_numbers import PhoneNumber
from shared.users.users import ListedUser, Status

PATH = "/api/v1/users"

RARE = 10_000
"""Up to this many matches are read and sorted in three milliseconds; of more, a scan of the newest soon finds some."""


PUNYCODE = "xn--"


def _email_prefix(text: str) -> str:
    """Return the canonical form of a prefix, except for a last label in punycode, which may be incomplete."""
    local, at, domain = text.strip().partition("@")
    *labels, last = unicodedata.normalize("NFKC", domain).lower().replace("\N{IDEOGRAPHIC FULL STOP}", ".").split(".")
    return folded(local) + at + ".".join([*map(_in_unicode, labels), last])


def _in_unicode(label: str) -> str:
    import idna

    try:
        return idna.decode(label) if label.startswith(PUNYCODE) else label
    except idna.IDNAError:
        return label


class UserSearch(PageQuery):
    email: Annotated[
        Annotated[Prefix, AfterValidator(_email_prefix)] | None,
        Field(description="The beginning of the address, in any case. The domain can be in Unicode or punycode."),
    ] = None
    name: Annotated[Prefix | None, Field(description="The beginning of the name, in any case and Unicode form.")] = None
    phone: Annotated[PhoneNumber | None, Field(description="The full number: +821012345678 or 010-1234-5678.")] = None
    status: Annotated[Status | None, Field(description="The status of the account.")] = None
    role: Annotated[Literal["admin"] | None, Field(description="A role of the account.")] = None
    business_number: Annotated[
        BusinessNumber | None, Field(description="The full number, with or without dashes: 123-45-67890.")
    ] = None


class UserPage(TypedDict):
    users: list[ListedUser]


@http_function("GET", PATH, role="admin", uses=["encryption"], may_lag=True)
def list_users(query: UserSearch, caller: Caller) -> Reply[UserPage]:
    """Search users.

    Newest first. A user must match all given parameters. The Link header points to the next page, if there is one
    (RFC 8288, rel="next").
    """
    rows = read(lambda connection: connection.execute(_search(connection, query)).all())
    page, link = pages.split(rows, PATH, query)
    return Reply(UserPage(users=[users.listed(row) for row in page]), link)


def _search(connection: Connection, query: UserSearch) -> Select[Any]:
    """Select one row more than the page has, to see whether there is a next page. Each condition has an index."""
    beginnings = []
    if query.email:
        beginnings.append(_has_email(connection, query.email))
    if query.name:
        beginnings.append(folded_name(account.c.name).like(folded_name(_beginning(query.name))))
    wanted = select(account.c.id).where(*beginnings)
    if query.cursor:
        wanted = wanted.where(account.c.id < query.cursor)
    if query.phone:
        wanted = wanted.where(account.c.phone == query.phone)
    if query.status:
        wanted = wanted.where(account.c.status == query.status)
    if query.role:
        wanted = wanted.where(account.c.roles != [], any_(account.c.roles) == query.role)
    if query.business_number:
        wanted = wanted.join(business).where(business.c.number == query.business_number)
    if any(_is_rare(connection, beginning) for beginning in beginnings):
        # OFFSET 0 makes PostgreSQL read all matches before it sorts them. Otherwise it assumes that they are spread
        # evenly and scans the accounts by id until the page is full: all of them if the matches are old.
        wanted = select(wanted.offset(0).subquery().c.id)
    newest = wanted.order_by(wanted.selected_columns.id.desc()).limit(query.limit + 1)
    return users.select_listed().where(account.c.id.in_(newest)).order_by(account.c.id.desc())


def _has_email(connection: Connection, beginning: str) -> ColumnElement[bool]:
    """Return the condition that an address begins with this text."""
    address = account.c.canonical_email
    *labels, last = beginning.partition("@")[2].split(".")
    if not last.startswith(PUNYCODE):
        return address.like(_beginning(beginning))
    # A part of a punycode label does not tell how the label begins in Unicode, so each candidate is encoded.
    candidates = select(address).where(
        address.like(_beginning(beginning.removesuffix(last))), func.split_part(address, "@", 2).op("~")("[^[:ascii:]]")
    )
    found = connection.scalars(candidates.limit(RARE)).all()
    return address.in_([each for each in found if _ascii_labels(each)[len(labels)].startswith(last)])


def _ascii_labels(address: str) -> list[str]:
    return mailbox(address).partition("@")[2].split(".")


def _is_rare(connection: Connection, beginning: ColumnElement[bool]) -> bool:
    one_more = select(literal(1)).select_from(account).where(beginning).offset(RARE).limit(1)
    return connection.scalar(one_more) is None


def _beginning(text: str) -> str:
    """Return the LIKE pattern of a prefix, with special characters escaped."""
    return re.sub(r"([\\%_])", r"\\\1", text) + "%"
