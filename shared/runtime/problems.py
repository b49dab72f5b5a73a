"""Errors that a caller sees, as problem details (RFC 9457)."""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NotRequired

from typing_extensions import TypedDict

REQUEST_SECONDS = 10
"""So long the gateway waits for a request to arrive in full."""


ReauthenticationReason = Literal["login-too-old", "second-factor-missing", "passkey-missing"]
"""What the next log-in must bring: a newer one, a code of the authenticator app, a passkey."""


class FieldError(TypedDict):
    """One fault in a request: where it is (JSON pointer, RFC 6901, into the body or the query) and what it is.

    `code` is stable: what a client translates by. `detail` is English, for developers.
    """

    pointer: str
    code: str
    detail: str


class ProblemExtensions(TypedDict, total=False):
    """Members that only some kinds of problems have (RFC 9457, 3.2)."""

    errors: list[FieldError]
    challenge: str
    methods: list[str]
    reason: ReauthenticationReason


class ProblemDetails(ProblemExtensions):
    """The body of every error (RFC 9457, 3.1), as application/problem+json.

    Tell errors apart by type. Later versions may have more types: treat one that you do not know by its status.
    request_id is absent when the router could not read the request's headers. challenge and methods are those of
    second-factor-required, reason is that of reauthentication-required.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: NotRequired[str]


class Problem(Exception):
    """An error with a name of its own. Subclasses state the status, a title, and what the caller can do."""

    status: ClassVar[int]
    title: ClassVar[str]
    detail: ClassVar[str]
    authenticate: ClassVar[str] = ""
    """The challenge in WWW-Authenticate (RFC 9110, 11.6.1), of those that have one."""

    def __init__(
        self,
        detail: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
        extensions: ProblemExtensions | None = None,
    ) -> None:
        """extensions: members that this kind of problem has beside the usual ones (RFC 9457, 3.2)."""
        super().__init__(detail or self.detail)
        self.headers = {**({"WWW-Authenticate": self.authenticate} if self.authenticate else {}), **(headers or {})}
        self.errors = list(errors)
        self.extensions = extensions or ProblemExtensions()

    @classmethod
    def type_uri(cls) -> str:
        """The stable identifier that clients tell errors apart by: urn:aegis:problem:invalid-credentials."""
        return "urn:aegis:problem:" + re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def body(self, request_id: str) -> ProblemDetails:
        body = ProblemDetails(
            type=self.type_uri(),
            title=self.title,
            status=self.status,
            detail=str(self),
            request_id=request_id,
            **self.extensions,
        )
        if self.errors:
            body["errors"] = self.errors
        return body


class MalformedRequest(Problem):
    status = 400
    title = "The request could not be read"
    detail = "The body is not a JSON document in UTF-8."


class Unauthenticated(Problem):
    status = 401
    title = "A valid access token is needed"
    detail = "Send a current access token as 'Authorization: Bearer ...'; refresh it or log in again."
    authenticate = 'Bearer error="invalid_token"'


class ReauthenticationRequired(Problem):
    """The log-in is too old, or was too weak, for what is asked (RFC 9470)."""

    status = 401
    title = "Log in again for this"
    detail = "It takes an access token of a log-in in the last ten minutes, with the strongest factor of the account."

    def __init__(
        self,
        reason: ReauthenticationReason = "login-too-old",
        detail: str = "",
        *,
        max_age: int | None = None,
    ) -> None:
        """max_age: seconds since the log-in that are allowed, where it was too long ago."""
        challenge = 'Bearer error="insufficient_user_authentication"'
        if max_age is not None:
            challenge += f', max_age="{max_age}"'
        super().__init__(detail, headers={"WWW-Authenticate": challenge}, extensions=ProblemExtensions(reason=reason))


class Forbidden(Problem):
    status = 403
    title = "This is not allowed to you"
    detail = "The account does not have the role that is needed."


class NotFound(Problem):
    status = 404
    title = "There is nothing at this address"
    detail = "Check the path against /openapi.json."


class NoSuchItem(Problem):
    status = 404
    title = "There is no such item"
    detail = "It never was, is gone, or belongs to somebody else."


class RequestTimeout(Problem):
    """The rest of a request did not come (RFC 9110, 15.5.9)."""

    status = 408
    title = "The request did not arrive in time"
    detail = f"Send it again; all of it must arrive within {REQUEST_SECONDS} seconds."


class PreconditionFailed(Problem):
    status = 412
    title = "It has changed since you read it"
    detail = "The ETag in If-Match is not the current one. Read it again, then repeat the change."


class MethodNotAllowed(Problem):
    status = 405
    title = "The method is not allowed here"
    detail = "The header Allow lists the methods that are."

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(headers={"Allow": ", ".join(allowed)})


class BodyTooLarge(Problem):
    status = 413
    title = "The body is too large"
    detail = "A body may have 64 KiB."


class UnsupportedMediaType(Problem):
    status = 415
    title = "The content type is not supported"
    detail = "Send the body as application/json, of a PATCH also as application/merge-patch+json."


class UnsupportedContentEncoding(Problem):
    """The body is compressed (RFC 9110, 15.5.16)."""

    status = 415
    title = "The content encoding is not supported"
    detail = "Send the body uncompressed, without the header Content-Encoding."

    def __init__(self) -> None:
        super().__init__(headers={"Accept-Encoding": "identity"})


class InvalidRequest(Problem):
    status = 422
    title = "Some fields are not valid"
    detail = "Nothing was changed. 'errors' lists each fault with a pointer to its field."


class TooManyRequests(Problem):
    """A rate limit is reached (RFC 6585, 4)."""

    status = 429
    title = "Too many requests"
    detail = "Try again after the seconds in the header Retry-After."

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={"Retry-After": "1", **(headers or {})})


class MisdirectedRequest(Problem):
    """The Host is none of this service (RFC 9110, 15.5.20): a page may have rebound its name to it."""

    status = 421
    title = "The service does not answer under this name"
    detail = "Use the address that make up printed."


class HeadersTooLarge(Problem):
    status = 431
    title = "The path, the query or the headers are too large"
    detail = "All of them together may have 8 KiB."


class InternalError(Problem):
    status = 500
    title = "Something went wrong on our side"
    detail = "The request may not have taken effect. Report the request id if it happens again."


class UnsupportedTransferCoding(Problem):
    """The body comes in a transfer coding other than chunked (RFC 9112, 6.1)."""

    status = 501
    title = "The transfer coding is not supported"
    detail = "Send the body with Content-Length, or with 'Transfer-Encoding: chunked'."


class ServiceUnavailable(Problem):
    """Something that the service needs is away, or it has as much work as it can take."""

    status = 503
    title = "The service is not available right now"
    detail = "Try again after the seconds in the header Retry-After."

    def __init__(self, detail: str = "", *, retry_after: int = 1) -> None:
        """retry_after: seconds."""
        super().__init__(detail, headers={"Retry-After": str(retry_after)})
