"""Check a business registration with the registry."""

from datetime import date
from typing import Any, Literal

from sqlalchemy import Connection, Row, exists, func, select, update

from shared.events.outbox import announce
from shared.events.types import (
    BusinessCheckDue,
    BusinessClosed,
    BusinessRejected,
    BusinessSubmitted,
    BusinessVerified,
    Event,
    UserReinstated,
    UserRestored,
)
from shared.framework.event_function import Mark, event_function
from shared.postgresql.tables import account, business
from shared.postgresql.transactions import transaction
from shared.providers import calls
from shared.runtime.problems import Problem, ServiceUnavailable
from shared.runtime.settings import settings
from shared.text.normalisation import normalize_name
from shared.users import profiles

ANSWER_SECONDS = 5.0
"""For each request; a check makes at most two."""

Verdict = tuple[Literal["verified", "rejected", "closed"], str | None]

_REGISTRY = calls.Provider("business_registry", "The business registry")
_ACTIVE = "01"
_REASONS = {"02": "suspended", "03": "closed", "": "unregistered"}
# Status codes of requests that the registry will never accept.
_REFUSALS = ("BAD_JSON_REQUEST", "REQUEST_DATA_MALFORMED", "TOO_LARGE_REQUEST")


class RegistryRefused(Problem):
    status = 422
    title = "The business registry rejected the request"
    detail = "Sending it again would not help."


# In order, so that after an outage of the registry at most six requests run at once, not the whole backlog.
@event_function(BusinessSubmitted, BusinessCheckDue, UserRestored, UserReinstated, uses=["business_registry", "cache"])
def verify_business(event: BusinessSubmitted | BusinessCheckDue | UserRestored | UserReinstated, mark: Mark) -> None:
    """Check a business registration with the registry of the National Tax Service.

    The registry is called between two transactions. If the submission was replaced meanwhile, the result is dropped;
    the new submission has another event. A number can be verified for only one account at a time. A user who withdraws
    releases it, and is checked again on return.
    """
    query = select(*business.c["number", "opened_on", "representative", "status", "submitted_at"])
    with transaction() as connection:
        found = connection.execute(
            query.join(account).where(business.c.account_id == event.user_id, account.c.status != "withdrawn")
        ).first()
    if found is None:
        return
    match event, found.status:
        case _, "pending":
            verdict = _examine(found.number, found.opened_on, found.representative)
        case BusinessCheckDue() | UserRestored() | UserReinstated(), "verified":
            verdict = _examine_again(found.number)
        case _:
            return
    with transaction() as connection:
        # Lock the account first, as everywhere: this and a concurrent submission wait for each other.
        status = connection.scalar(
            select(account.c.status).where(account.c.id == event.user_id).with_for_update(key_share=True)
        )
        if status != "withdrawn" and _write(connection, event, found, verdict):
            profiles.refresh(connection, event.user_id)
        mark(connection)


def _write(connection: Connection, event: Event, found: Row[Any], verdict: Verdict) -> bool:
    """Store the verdict, unless the submission has changed meanwhile; return whether the status changed."""
    holds_number = False
    if verdict[0] == "verified":
        holds_number = not _is_taken(connection, event, found.number)
        # A daily check leaves businesses alone that were verified before a number was limited to one account.
        if not holds_number and not (isinstance(event, BusinessCheckDue) and found.status == "verified"):
            verdict = "rejected", "verified_elsewhere"
    status, reason = verdict
    written = connection.execute(
        update(business)
        .where(
            business.c.account_id == event.user_id,
            business.c.number == found.number,
            business.c.submitted_at == found.submitted_at,
            business.c.status == found.status,
        )
        .values(status=status, reason=reason, checked_at=func.now(), holds_number=holds_number)
    ).rowcount
    if not written or status == found.status:
        return False
    match verdict:
        case "verified", _:
            announce(connection, BusinessVerified(user_id=event.user_id))
        case "closed", _:
            announce(connection, BusinessClosed(user_id=event.user_id))
        case "rejected", str(reason):
            announce(connection, BusinessRejected(user_id=event.user_id, reason=reason))
    return True


def _is_taken(connection: Connection, event: Event, number: str) -> bool:
    """Return whether a number is verified for another account, locked against changes until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"business {number}", 0))))
    own, other = business.alias(), business.alias()
    holds = exists().where(own.c.account_id == event.user_id, own.c.number == number, own.c.holds_number)
    verified = exists().where(
        other.c.number == number,
        other.c.status == "verified",
        other.c.account_id != event.user_id,
        other.c.account_id == account.c.id,
        account.c.status != "withdrawn",
    )
    return bool(connection.scalar(select(~holds & verified)))


def _examine(number: str, opened_on: date, representative: str) -> Verdict:
    """Check that a business is registered as submitted and is active."""
    stated = {"b_no": number, "start_dt": f"{opened_on:%Y%m%d}", "p_nm": normalize_name(representative)}
    answer = _ask("validate", {"businesses": [stated]}, number)
    # The registry omits the status if the submitted details are wrong.
    state = answer.get("status") or _ask("status", {"b_no": [number]}, number)
    match answer.get("valid"), _state_code(state):
        case "01", "01":
            return "verified", None
        case ("01", ("02" | "03" | "") as code) | ("02", "" as code):
            return "rejected", _REASONS[code]
        case "02", _:
            return "rejected", "not_registered_as_stated"
    raise _unclear()


def _examine_again(number: str) -> Verdict:
    """Check that a verified business is still active."""
    code = _state_code(_ask("status", {"b_no": [number]}, number))
    return ("verified", None) if code == _ACTIVE else ("closed", _REASONS[code])


def _state_code(state: Any) -> str:
    """Return the status code: 01 active, 02 suspended, 03 closed, empty unregistered.

    Raises:
        ServiceUnavailable: it is none of these.
    """
    code = state.get("b_stt_cd") if isinstance(state, dict) else None
    if isinstance(code, str) and (code == _ACTIVE or code in _REASONS):
        return code
    raise _unclear()


def _unclear() -> ServiceUnavailable:
    return ServiceUnavailable(f"{_REGISTRY} gave no clear answer.", retry_after=calls.RETRY_AFTER_SECONDS)


def _ask(operation: Literal["validate", "status"], question: dict[str, Any], number: str) -> dict[str, Any]:
    """Ask the registry about one business (api.odcloud.kr, nts-businessman v1).

    Raises:
        ServiceUnavailable: it is unavailable or overloaded, rejects our key, or sends an invalid response.
        RegistryRefused: it rejected the request.
    """
    response = calls.ask(
        _REGISTRY,
        "POST",
        f"{settings().business_registry_api_url}/api/nts-businessman/v1/{operation}",
        seconds=ANSWER_SECONDS,
        json=question,
        # Not as the parameter serviceKey, because URLs are logged.
        headers={"Authorization": f"Infuser {settings().business_registry_api_key}"},
    )
    try:
        answer: Any = response.json()
    except ValueError:
        answer = None
    match answer:
        case {"status_code": "OK", "data": [{"b_no": found} as item]} if response.status == 200 and found == number:
            return dict(item)
        case {"status_code": code} if response.status < 500 and code in _REFUSALS:
            raise RegistryRefused(f"{_REGISTRY} answered {code}.")
    raise _unclear() if response.status == 200 else calls.not_now(_REGISTRY, response)
