"""Errors of the Kubernetes API as one small family, whatever layer they came from.

A caller decides by class (`except ConflictError`), never by parsing a message. Errors of the connection
(refused, reset, timed out, TLS) are `UnreachableError`: the API server said nothing, so nothing is known about
what it did with the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class KubeError(Exception):
    """An answer of the API server that is not a success, or no answer at all.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: machine-readable reason of the Status object, for example `Conflict`; may be empty.
        message: the sentence of the API server, with what was asked in front of it.
        retry_after_seconds: the server's `Retry-After`, when it sent one.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{message} ({status} {reason})" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class UnauthorizedError(KubeError):
    """401: the token or certificate is not accepted (any more)."""


class ForbiddenError(KubeError):
    """403: RBAC or an admission policy says no."""


class NotFoundError(KubeError):
    """404: no such object, or no such resource."""


class ConflictError(KubeError):
    """409: the object changed since it was read, or a field belongs to another manager."""


class AlreadyExistsError(ConflictError):
    """409 with reason AlreadyExists: a create met an object of the same name."""


class GoneError(KubeError):
    """410: the resource version or continue token is too old; list again."""


class InvalidError(KubeError):
    """400, 422, or 500 from apply: the object is refused by schema, CEL or strict field validation."""


class TooManyRequestsError(KubeError):
    """429: priority and fairness sheds load, or an eviction is not allowed now."""


class UnreachableError(KubeError):
    """No answer: refused, reset, timed out or not trusted. The request may or may not have been carried out."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


_CLASS_BY_STATUS: Mapping[int, type[KubeError]] = {
    400: InvalidError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: TooManyRequestsError,
}


def error_from_status(
    status: int, body: Mapping[str, Any], asked: str, retry_after_seconds: float | None = None
) -> KubeError:
    """The error for one failed answer.

    Args:
        status: HTTP status, or the `code` of a Status object inside a watch stream.
        body: the Status object (`reason`, `message`); empty when the answer was not one.
        asked: what was asked, for example `GET /api/v1/nodes/a`; it opens the message.
        retry_after_seconds: from the header, or from `details.retryAfterSeconds`.
    """
    reason = str(body.get("reason") or "")
    message = f"{asked}: {body.get('message') or 'the API server gave no message'}"
    kind = _CLASS_BY_STATUS.get(status, KubeError)
    if reason == "AlreadyExists":
        kind = AlreadyExistsError
    elif reason in {"Expired", "Gone"}:
        kind = GoneError
    elif status == 500 and "failed to create typed patch object" in message:
        # What server-side apply answers to an unknown field (tried on 1.36.2): our fault, no use in trying again.
        kind = InvalidError
    if retry_after_seconds is None:
        details = body.get("details") or {}
        retry_after_seconds = details.get("retryAfterSeconds")
    return kind(status, reason, message, retry_after_seconds=retry_after_seconds)
