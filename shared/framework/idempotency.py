"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): a request that is sent again takes effect once.

The response is stored for a day, encrypted, in the transaction of the change. A client that lost it can send the
request again and gets the same response byte for byte. A response with tokens is replayed only while a new log-in would
get tokens too; after that, the request is performed as a new one.
"""

import contextlib
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from flask import Response
from sqlalchemy import ColumnElement, delete, func, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert

from shared.http.request import ProblemResponse
from shared.identity.encryption import keyed_hash, seal, unseal
from shared.identity.live_sessions import is_live
from shared.identity.tokens import decode
from shared.postgresql.tables import account, credential, session, stored_answer, totp
from shared.postgresql.transactions import last_transaction_open, transaction
from shared.runtime.problems import Problem, ServiceUnavailable

LIFETIME = timedelta(hours=24)
CLAIM_LIFETIME = timedelta(seconds=30)
"""After this time an unanswered request counts as dead: a live function answers within two seconds."""
MIN_LENGTH, MAX_LENGTH = 16, 255
_PURPOSE = "stored answer"
_SOLVED_ELSEWHERE = frozenset({401, 403, 429})
_KEPT_HEADERS = ("Content-Type", "ETag", "Link", "Location", "WWW-Authenticate")


class InvalidIdempotencyKey(Problem):
    status = 400
    title = "The Idempotency-Key is not valid"
    detail = (
        f'Send a UUID, or other {MIN_LENGTH} to {MAX_LENGTH} printable ASCII characters, in double quotes: "8e03…".'
    )


class RequestInProgress(Problem):
    status = 409
    title = "The first request with this Idempotency-Key is still in progress"
    detail = "To get its response, send it again after the seconds in the header Retry-After."

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class IdempotencyKeyReused(Problem):
    status = 422
    title = "The Idempotency-Key was used for another request"
    detail = "Nothing was changed. Use a new key for each new request."


PROBLEMS = (InvalidIdempotencyKey, RequestInProgress, IdempotencyKeyReused)


def answer_once(
    header: str, scope: str, request: bytes, perform: Callable[[], Response], *, before_replay: Callable[[], None]
) -> Response:
    """Return the response of `perform`, or the stored one if this request was performed before.

    A problem that `perform` raises is a response too. Two kinds of problems are not stored: failures on our side (5xx),
    which change nothing, and those that the caller can solve before a retry by logging in, getting a role or waiting.

    Args:
        header: the value of Idempotency-Key.
        scope: the operation and the caller; a key is only valid within its scope.
        request: the bytes that are equal for equal requests.
        before_replay: raises a problem if the caller may not get a stored response.

    Raises:
        InvalidIdempotencyKey, RequestInProgress, IdempotencyKeyReused
    """
    key = _key(header)
    id_ = keyed_hash(_PURPOSE, f"{scope}\n{key}".encode())
    fingerprint = keyed_hash(_PURPOSE, id_ + request)

    claimed_at, found = _claim(id_, fingerprint)
    if found:
        if found.fingerprint != fingerprint:
            raise IdempotencyKeyReused
        if found.answer is None:
            raise RequestInProgress
        before_replay()
        response = _response(unseal(_PURPOSE, found.answer, id_))
        if _may_come_again(response, found.claimed_at):
            return response
        outdated = (stored_answer.c.id == id_, stored_answer.c.claimed_at == found.claimed_at)
        with transaction() as connection:
            connection.execute(delete(stored_answer).where(*outdated))
        claimed_at, found = _claim(id_, fingerprint)
        if found:
            raise RequestInProgress

    this = (stored_answer.c.id == id_, stored_answer.c.claimed_at == claimed_at)
    try:
        with last_transaction_open() as last:
            response, is_final = _perform(perform)
            if is_final:
                mark = last.execute(
                    update(stored_answer).where(*this).values(answer=seal(_PURPOSE, _record(response), id_))
                )
            else:
                mark = last.execute(delete(stored_answer).where(*this))
            if not mark.rowcount:
                raise ServiceUnavailable  # another request has taken over an expired claim: only that one may count
    except BaseException:
        # A stored answer means that the commit succeeded and only its confirmation was lost.
        unanswered = delete(stored_answer).where(*this, stored_answer.c.answer.is_(None))
        with contextlib.suppress(ServiceUnavailable), transaction() as connection:
            connection.execute(unanswered)
        raise
    return response


def _key(header: str) -> str:
    """Return the key in a header: a String as in the draft, or unquoted, as many clients send it."""
    value = header.strip(" \t")
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    allowed = r"\x20\x21\x23-\x5b\x5d-\x7e" if bare != value else r"\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e"
    if not re.fullmatch(rf"[{allowed}]{{{MIN_LENGTH},{MAX_LENGTH}}}", bare):
        raise InvalidIdempotencyKey
    return bare


def _perform(perform: Callable[[], Response]) -> tuple[Response, bool]:
    """Return the response, and whether a retry would get the same."""
    try:
        return perform(), True
    except Problem as problem:
        if problem.status >= 500:
            raise
        # What the handler has written, such as a counted attempt, is committed in both cases.
        is_final = problem.status not in _SOLVED_ELSEWHERE and "Retry-After" not in problem.headers
        return ProblemResponse(problem), is_final


def _claim(id_: bytes, fingerprint: bytes) -> tuple[Any, Any]:
    """Return the time of the claim if this request is the first, otherwise the row of the first one."""
    now = func.clock_timestamp()
    age: ColumnElement[Any] = now - stored_answer.c.claimed_at
    row = {"fingerprint": fingerprint, "answer": None, "claimed_at": now}
    claim = (
        insert(stored_answer)
        .values(id=id_, **row)
        .on_conflict_do_update(
            index_elements=["id"],
            set_=row,
            where=or_(age > LIFETIME, stored_answer.c.answer.is_(None) & (age > CLAIM_LIFETIME)),
        )
        .returning(stored_answer.c.claimed_at)
    )
    with transaction() as connection:
        if claimed_at := connection.scalar(claim):
            return claimed_at, None
        found = connection.execute(
            select(*stored_answer.c["fingerprint", "answer", "claimed_at"]).where(stored_answer.c.id == id_)
        ).first()
    if found is None:
        raise RequestInProgress  # the claim was just released
    return None, found


def _may_come_again(response: Response, answered_at: datetime) -> bool:
    """Return whether a response can be replayed: always without tokens, otherwise only while they are still good.

    The session must be live, and the password and authenticator app no newer than the response. Otherwise someone with
    the old password and the key would get into the session in which the owner changed it.
    """
    body = response.get_json(silent=True)
    if not isinstance(body, dict) or "access_token" not in body:
        return True
    claims = json.loads(decode(body["access_token"].split(".")[1]))
    same_factors = (
        select(session.c.id)
        .select_from(
            account.join(session)
            .outerjoin(credential, credential.c.account_id == account.c.id)
            .outerjoin(totp, totp.c.account_id == account.c.id)
        )
        .where(
            session.c.id == UUID(claims["sid"]),
            is_live(),
            account.c.status == "active",
            func.coalesce(credential.c.changed_at <= answered_at, true()),
            func.coalesce(totp.c.confirmed_at <= answered_at, true()),
        )
    )
    with transaction() as connection:
        return connection.execute(same_factors).first() is not None


def _record(response: Response) -> bytes:
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return json.dumps([response.status_code, headers, response.get_data(as_text=True)]).encode()


def _response(record: bytes) -> Response:
    status, headers, body = json.loads(record)
    response = Response(body, status)
    del response.headers["Content-Type"]
    response.headers.extend(headers)
    response.headers["Idempotency-Replayed"] = "true"
    return response
