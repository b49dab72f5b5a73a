"""The events that the service announces. They contain ids, never personal data or secrets."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from shared.text.fields import Uuid

SOURCE = "/aegis/user-service"
# PostgreSQL cannot store these in JSON.
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")


class Event(BaseModel):
    """The data of a CloudEvent whose type is `type` and whose subject is the user's id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: ClassVar[str]
    user_id: Annotated[Uuid, Field(description="Also the subject of the CloudEvent and the key of its Kafka record.")]

    @field_validator("*")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and _UNSTORABLE.search(text):
                raise PydanticCustomError("text", "Text must not contain U+0000 or a lone surrogate.")
        return value


class UserRegistered(Event):
    """An account was registered and its address must be verified; repeated for each registration until it is."""

    type = "com.aegis.user.registered.v1"
    locale: Annotated[Literal["ko", "en"], Field(title="Locale")]


class RegistrationRepeated(Event):
    """Somebody tried to register, or to change to, an address that belongs to an account."""

    type = "com.aegis.user.registration_repeated.v1"


class EmailVerificationRequested(Event):
    """Somebody requested a verification link for an address; the user id is random if the address does not need one."""

    type = "com.aegis.user.email_verification_requested.v1"


class EmailVerified(Event):
    """An address was verified; the account is active."""

    type = "com.aegis.user.email_verified.v1"


class EmailChangeRequested(Event):
    """A user gave a new address, which takes the place of the old one when it is verified."""

    type = "com.aegis.user.email_change_requested.v1"


class EmailChanged(Event):
    """A new address was verified and took the place of the old one."""

    type = "com.aegis.user.email_changed.v1"


class EmailReplaced(Event):
    """An old address was replaced. A link in a mail to it undoes the change for seven days."""

    type = "com.aegis.user.email_replaced.v1"
    former_email_id: Annotated[Uuid, Field(description="The id under which the service keeps the old address.")]


class EmailChangeUndone(Event):
    """The old address is in force again; all sessions have ended."""

    type = "com.aegis.user.email_change_undone.v1"


class PasswordResetRequested(Event):
    """Somebody asked to reset a password; the user id is random if there is no such account."""

    type = "com.aegis.user.password_reset_requested.v1"


class PasswordChanged(Event):
    """A password was changed or reset; sessions have ended."""

    type = "com.aegis.user.password_changed.v1"


class LoggedIn(Event):
    """A session has started."""

    type = "com.aegis.user.logged_in.v1"
    session_id: Uuid
    amr: Annotated[list[str], Field(description="How the user proved who they are (RFC 8176).")]


class LoggedOut(Event):
    """A user ended a session."""

    type = "com.aegis.user.logged_out.v1"
    session_id: Uuid


class RefreshTokenReused(Event):
    """A refresh token was used twice, so it must have been stolen. Its session has ended."""

    type = "com.aegis.user.refresh_token_reused.v1"
    session_id: Uuid


class ProfileUpdated(Event):
    """A name or language was changed."""

    type = "com.aegis.user.profile_updated.v1"
    fields: Annotated[list[str], Field(description="The fields of the profile that changed.")]


class PhoneCodeRequested(Event):
    """A phone number must be verified."""

    type = "com.aegis.user.phone_code_requested.v1"


class PhoneVerified(Event):
    """A phone number was verified."""

    type = "com.aegis.user.phone_verified.v1"


class PhoneRemoved(Event):
    """A phone number was removed from an account."""

    type = "com.aegis.user.phone_removed.v1"


class BusinessSubmitted(Event):
    """A business registration was submitted and must be verified."""

    type = "com.aegis.user.business_submitted.v1"


class BusinessCheckDue(Event):
    """A business registration must be checked again, or for the first time if the registry has not answered yet."""

    type = "com.aegis.user.business_check_due.v1"


class BusinessVerified(Event):
    """The registry confirmed that the business is active."""

    type = "com.aegis.user.business_verified.v1"


class BusinessRejected(Event):
    """The registry did not confirm the business."""

    type = "com.aegis.user.business_rejected.v1"
    reason: Annotated[str, Field(description="unregistered, suspended, closed, not_registered_as_stated or a new one.")]


class BusinessClosed(Event):
    """A verified business is now suspended or closed."""

    type = "com.aegis.user.business_closed.v1"


class TotpEnabled(Event):
    """A second factor was set up."""

    type = "com.aegis.user.totp_enabled.v1"


class TotpRemoved(Event):
    """A second factor was removed, by the user or by an administrator."""

    type = "com.aegis.user.totp_removed.v1"
    actor_id: Annotated[Uuid | None, Field(description="The administrator, if it was one who called.")] = None


class FactorsRemoved(Event):
    """An administrator removed the authenticator app, the recovery codes and all passkeys of an account."""

    type = "com.aegis.user.factors_removed.v1"
    actor_id: Annotated[Uuid, Field(description="The administrator.")]


class SessionsEnded(Event):
    """An administrator ended all sessions of an account."""

    type = "com.aegis.user.sessions_ended.v1"
    actor_id: Annotated[Uuid, Field(description="The administrator.")]


class RecoveryCodeUsed(Event):
    """A recovery code was used instead of the second factor."""

    type = "com.aegis.user.recovery_code_used.v1"


class RecoveryCodesRenewed(Event):
    """A user created new recovery codes; the old ones are void."""

    type = "com.aegis.user.recovery_codes_renewed.v1"


class PasskeyRegistered(Event):
    """A passkey was added."""

    type = "com.aegis.user.passkey_registered.v1"
    passkey_id: Uuid


class PasskeyRemoved(Event):
    """A passkey was removed."""

    type = "com.aegis.user.passkey_removed.v1"
    passkey_id: Uuid


class DataExported(Event):
    """A user exported all data stored about them."""

    type = "com.aegis.user.data_exported.v1"


class UserWithdrawn(Event):
    """A user withdrew; the account is purged after some days unless they log in again."""

    type = "com.aegis.user.withdrawn.v1"


class UserRestored(Event):
    """A user who had withdrawn logged in again in time."""

    type = "com.aegis.user.restored.v1"


class UserPurged(Event):
    """An account was deleted with all personal data: it was withdrawn, or its address was never verified."""

    type = "com.aegis.user.purged.v1"


class UserSuspended(Event):
    """An administrator suspended an account; its sessions have ended."""

    type = "com.aegis.user.suspended.v1"
    actor_id: Annotated[Uuid, Field(description="The administrator.")]


class UserReinstated(Event):
    """An administrator ended a suspension or a withdrawal."""

    type = "com.aegis.user.reinstated.v1"
    actor_id: Annotated[Uuid, Field(description="The administrator.")]


class RolesChanged(Event):
    """The roles of an account were changed; its sessions have ended."""

    type = "com.aegis.user.roles_changed.v1"
    roles: Annotated[list[str], Field(description="All roles that the account has now.")]
    actor_id: Annotated[Uuid | None, Field(description="The administrator, if it was one who called.")] = None


ALL_EVENTS: tuple[type[Event], ...] = tuple(Event.__subclasses__())
