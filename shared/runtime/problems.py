"""Errors that callers receive, as problem details (RFC 9457)."""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NotRequired

from typing_extensions import TypedDict

REQUEST_SECONDS = 10
"""How long the gateway waits for a complete request."""


ReauthenticationReason = Literal["login-too-old", "second-factor-missing", "passkey-missing"]
"""Why the user must log in again: the login is too old, or lacks a second factor or a passkey."""


class FieldError(TypedDict):
    """One error in a request. `pointer` (JSON pointer, RFC 6901) is its place in the body or the query.

    `code` is stable: translate by it. `detail` is in English, for developers.
    """

    pointer: str
    code: str
    detail: str


class ProblemExtensions(TypedDict, total=False):
    """Members that only some problem types have (RFC 9457, 3.2)."""

    errors: list[FieldError]
    challenge: str
    methods: list[str]
    reason: ReauthenticationReason


class ProblemDetails(ProblemExtensions):
    """The body of every error (RFC 9457, 3.1), as application/problem+json.

    Distinguish errors by type. Later versions may add types: handle an unknown type by its status. request_id is absent
    if the router could not read the request's headers. Only second-factor-required has challenge and methods, and only
    reauthentication-required has reason.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: NotRequired[str]


class Problem(Exception):
    """A named error. Subclasses set the status, a title, and what the caller can do."""

    status: ClassVar[int]
    title: ClassVar[str]
    detail: ClassVar[str]
    authenticate: ClassVar[str] = ""
    """The challenge in WWW-Authenticate (RFC 9110, 11.6.1), if any."""

    def __init__(
        self,
        detail: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
        extensions: ProblemExtensions | None = None,
    ) -> None:
        """extensions: additional members of this problem type (RFC 9457, 3.2)."""
        super().__init__(detail or self.detail)
        self.headers = {**({"WWW-Authenticate": self.authenticate} if self.authenticate else {}), **(headers or {})}
        self.errors = list(errors)
        self.extensions = extensions or ProblemExtensions()

    @classmethod
    def type_uri(cls) -> str:
        """Return the stable identifier of the error, such as urn:aegis:problem:invalid-credentials."""
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
    title = "A valid access token is required"
    detail = "Send a current access token as 'Authorization: Bearer ...'; refresh it or log in again."
    authenticate = 'Bearer error="invalid_token"'


class ReauthenticationRequired(Problem):
    """The login is too old or too weak for this operation (RFC 9470)."""

    status = 401
    title = "Log in again to do this"
    detail = "This requires a login within the last ten minutes, with the strongest factor of the account."

    def __init__(
        self,
        reason: ReauthenticationReason = "login-too-old",
        detail: str = "",
        *,
        max_age: int | None = None,
    ) -> None:
        """max_age: the allowed age of the login in seconds, if it was too old."""
        challenge = 'Bearer error="insufficient_user_authentication"'
        if max_age is not None:
            challenge += f', max_age="{max_age}"'
        super().__init__(detail, headers={"WWW-Authenticate": challenge}, extensions=ProblemExtensions(reason=reason))


class Forbidden(Problem):
    status = 403
    title = "You do not have permission to do this"
    detail = "The account does not have the required role."


class NotFound(Problem):
    status = 404
    title = "There is nothing at this address"
    detail = "Check the path against /openapi.json."


class NoSuchItem(Problem):
    status = 404
    title = "There is no such item"
    detail = "It does not exist, was deleted, or belongs to somebody else."


class RequestTimeout(Problem):
    """The request did not arrive completely (RFC 9110, 15.5.9)."""

    status = 408
    title = "The request did not arrive in time"
    detail = f"Send it again; all of it must arrive within {REQUEST_SECONDS} seconds."


class PreconditionFailed(Problem):
    status = 412
    title = "The resource has changed since you read it"
    detail = "The ETag in If-Match is not the current one. Read it again, then repeat the change."


class MethodNotAllowed(Problem):
    status = 405
    title = "The method is not allowed here"
    detail = "The Allow header lists the allowed methods."

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(headers={"Allow": ", ".join(allowed)})


class BodyTooLarge(Problem):
    status = 413
    title = "The body is too large"
    detail = "The request body exceeds the limit of 64 KiB."


class UnsupportedMediaType(Problem):
    status = 415
    title = "The content type is not supported"
    detail = "Send the body as application/json; a PATCH can also use application/merge-patch+json."


class UnsupportedContentEncoding(Problem):
    """The body is compressed (RFC 9110, 15.5.16)."""

    status = 415
    title = "The content encoding is not supported"
    detail = "Send the body uncompressed, without a Content-Encoding header."

    def __init__(self) -> None:
        super().__init__(headers={"Accept-Encoding": "identity"})


class InvalidRequest(Problem):
    status = 422
    title = "Some fields are not valid"
    detail = "Nothing was changed. 'errors' lists each error with a pointer to its field."


class TooManyRequests(Problem):
    """A rate limit is reached (RFC 6585, 4)."""

    status = 429
    title = "Too many requests"
    detail = "Try again after the number of seconds in the Retry-After header."

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={"Retry-After": "1", **(headers or {})})


class MisdirectedRequest(Problem):
    """The Host is not one of this service (RFC 9110, 15.5.20): protects against DNS rebinding."""

    status = 421
    title = "The service does not answer under this name"
    detail = "Use the address that make up printed."


class HeadersTooLarge(Problem):
    status = 431
    title = "The path, the query or the headers are too large"
    detail = "Together they exceed the limit of 8 KiB."


class InternalError(Problem):
    status = 500
    title = "Something went wrong on our side"
    detail = "The request may not have taken effect. Report the request id if it happens again."


class UnsupportedTransferCoding(Problem):
    """The body has a transfer coding other than chunked (RFC 9112, 6.1)."""

    status = 501
    title = "The transfer coding is not supported"
    detail = "Send the body with Content-Length, or with 'Transfer-Encoding: chunked'."


class ServiceUnavailable(Problem):
    """The service is overloaded, or something that it needs is unreachable."""

    status = 503
    title = "The service is not available right now"
    detail = "Try again after the number of seconds in the Retry-After header."

    def __init__(self, detail: str = "", *, retry_after: int = 1) -> None:
        """retry_after: seconds."""
        super().__init__(detail, headers={"Retry-After": str(retry_after)})
