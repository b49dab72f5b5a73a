"""Submit the caller's business registration."""

from datetime import date, datetime, timedelta, timezone
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert

from shared.events.outbox import announce
from shared.events.types import BusinessSubmitted
from shared.framework.http_function import http_function
from shared.identity.access_tokens import Caller
from shared.identity.changes import change
from shared.postgresql.tables import business
from shared.runtime.problems import FieldError
from shared.text.business_numbers import BusinessNumber, check_digit
from shared.text.fields import FullDate, Name, RequestBody
from shared.users import profiles
from shared.users.profiles import BusinessState

KOREA = timezone(timedelta(hours=9))
EARLIEST = date(1900, 1, 1)


def _past(day: date) -> date:
    # In the time zone of the registry, hours ahead of UTC: a business can open today.
    if not EARLIEST <= day <= datetime.now(KOREA).date():
        raise PydanticCustomError("opened_on", "The date is in the future or before 1900.")
    return day


class BusinessRegistration(RequestBody):
    number: BusinessNumber
    opened_on: Annotated[FullDate, AfterValidator(_past), Field(description="As registered (개업일).")]
    representative: Annotated[Name, Field(description="As registered (대표자).")]


class SubmittedBusiness(BusinessState):
    warnings: list[FieldError]


@http_function(
    "PUT",
    "/api/v1/users/me/business",
    status=202,
    # The result reveals whether a name and a date belong to a number, so guessing must be limited.
    limits={"address": "60/minute", "account": "10/hour;20/day"},
)
def submit_business(body: BusinessRegistration, caller: Caller) -> SubmittedBusiness:
    """Submit the business registration.

    It is checked with the registry of the National Tax Service within seconds. The profile then shows `verified`, or
    `rejected` with the reason: `not_registered_as_stated`, `unregistered`, `suspended`, `closed`, or
    `verified_elsewhere` if another account has the number. A verified business is checked again every day. Submitting
    again replaces the registration and starts a new check.

    A number with a wrong check digit is accepted with a warning, because some valid numbers have one.
    """
    row = {
        "number": body.number,
        "opened_on": body.opened_on,
        "representative": body.representative,
        "status": "pending",
        "reason": None,
        "submitted_at": func.now(),
        "checked_at": None,
        "holds_number": False,
    }
    with change(caller) as connection:
        connection.execute(
            insert(business)
            .values(account_id=caller.user_id, **row)
            .on_conflict_do_update(index_elements=["account_id"], set_=row)
        )
        announce(connection, BusinessSubmitted(user_id=caller.user_id))
        profiles.refresh(connection, caller.user_id)
    return SubmittedBusiness(number=body.number, status="pending", reason=None, warnings=_warnings(body.number))


def _warnings(number: str) -> list[FieldError]:
    if check_digit(number[:-1]) == number[-1]:
        return []
    return [
        FieldError(
            pointer="/number", code="check_digit", detail="The check digit does not match. Look for a typing error."
        )
    ]
