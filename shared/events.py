"""What the service announces. An event holds ids, never personal data or a secret."""

from typing import ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, insert
from uuid_utils.compat import uuid7

from shared import logs
from shared.tables import outbox

SOURCE = "/aegis/user-service"


class Event(BaseModel):
    """The data of a CloudEvent; `type` is the CloudEvent's, its `subject` the user's id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: ClassVar[str]
    user_id: UUID


class UserRegistered(Event):
    """An account waits for its address to be verified; again for each registration until it is."""

    type = "com.aegis.user.registered.v1"
    locale: Literal["ko", "en"]


class RegistrationRepeated(Event):
    """Somebody tried to register the address of an active account."""

    type = "com.aegis.user.registration_repeated.v1"


class EmailVerified(Event):
    """An address was verified; the account is active."""

    type = "com.aegis.user.email_verified.v1"


def announce(connection: Connection, event: Event) -> None:
    """Puts the event in the outbox, in the transaction of the change that it tells of."""
    connection.execute(
        insert(outbox).values(
            id=uuid7(),
            type=event.type,
            subject=event.user_id,
            data=event.model_dump(mode="json"),
            request_id=logs.request_id.get(),
        )
    )
