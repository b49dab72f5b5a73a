"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): a request that is sent again takes effect once.

The answer is stored in the transaction of the change, sealed, for a day. So whoever lost an answer may send the
request again, and gets that answer byte for byte. An answer with tokens comes again only while a new log-in would get
tokens too; after that, the request is performed as a new one.
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
"""After so long a request that has not answered is taken for dead: a function that lives answers within two seconds."""
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
    title = "The first request with this Idempotency-Key is not answered yet"
    detail = "Send it again after the seconds in the header Retry-After, to get its answer."

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class IdempotencyKeyReused(Problem):
    status = 422
    title = "The Idempotency-Key was used for another request"
    detail = "Nothing was changed. Make a new key for each new request."


PROBLEMS = (InvalidIdempotencyKey, RequestInProgress, IdempotencyKeyReused)


def answer_once(
    header: str, scope: str, request: bytes, perform: Callable[[], Response], *, before_replay: Callable[[], None]
) -> Response:
    """The answer of `perform`, or the one that it gave to this request before.

    A problem that it raises is an answer too. Not stored are failures on our side (5xx), which change nothing, and
    problems that the caller can solve before the same request is sent again: log in, get a role, wait.

    Args:
        header: the value of Idempotency-Key.
        scope: operation and caller; the same key means something else in another.
        request: what makes two requests the same.
        before_replay: raises the problem of a caller who may not have an answer that is stored.

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
                raise ServiceUnavailable  # it took so long that another request took over: only that one may count
    except BaseException:
        # Unless it has an answer: then the commit came through, and only word of it was lost.
        unanswered = delete(stored_answer).where(*this, stored_answer.c.answer.is_(None))
        with contextlib.suppress(ServiceUnavailable), transaction() as connection:
            connection.execute(unanswered)
        raise
    return response


def _key(header: str) -> str:
    """The key in a header: a String as the draft has it, or bare, as many clients send it."""
    value = header.strip(" \t")
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    allowed = r"\x20\x21\x23-\x5b\x5d-\x7e" if bare != value else r"\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e"
    if not re.fullmatch(rf"[{allowed}]{{{MIN_LENGTH},{MAX_LENGTH}}}", bare):
        raise InvalidIdempotencyKey
    return bare


def _perform(perform: Callable[[], Response]) -> tuple[Response, bool]:
    """The answer, and whether it would be the same another time."""
    try:
        return perform(), True
    except Problem as problem:
        if problem.status >= 500:
            raise
        # What the handler has written, as a try that counts, stands in either case.
        is_final = problem.status not in _SOLVED_ELSEWHERE and "Retry-After" not in problem.headers
        return ProblemResponse(problem), is_final


def _claim(id_: bytes, fingerprint: bytes) -> tuple[Any, Any]:
    """Either when this request was written down as the first, or the row of the one that was."""
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
        raise RequestInProgress  # given back this moment
    return None, found


def _may_come_again(response: Response, answered_at: datetime) -> bool:
    """Whether an answer may be given again: always without tokens, else while they are still good.

    Their session must be live, and password and authenticator app no newer than the answer. Otherwise somebody with the
    old password and the key would get into the session in which the owner changed it.
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
