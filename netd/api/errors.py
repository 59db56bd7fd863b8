"""Exceptions to HTTP, in one table. Every error of the API is an RFC 9457 problem document made here."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from netd import errors
from netd.api.models import FieldProblem, Holder, Problem

MEDIA_TYPE = "application/problem+json"

# NetdError class: (status, title). A class not listed here takes its base's row.
STATUSES: dict[type[errors.NetdError], tuple[int, str]] = {
    errors.NetdError: (500, "The request failed"),
    errors.InvalidSpec: (422, "Not a valid request"),
    errors.NoSuchNetwork: (404, "No such network"),
    errors.AmbiguousNetwork: (409, "The id prefix fits several networks"),
    errors.NetworkExists: (409, "The network exists already"),
    errors.NoSuchPort: (404, "No such port forward"),
    errors.PortInUse: (409, "The host port is in use"),
    errors.PortPrivileged: (422, "The host port is privileged"),
    errors.AddressUnavailable: (422, "The host address is not available"),
    errors.NamespaceUnavailable: (422, "The network namespace is not available"),
    errors.TapUnavailable: (500, "The TAP device could not be made"),
    errors.AgentUnavailable: (503, "The namespace agent is not available"),
    errors.LimitReached: (409, "A limit is reached"),
    errors.ShuttingDown: (503, "The daemon is stopping"),
}


class RequestRefused(Exception):
    """The HTTP request itself is at fault; raised within the API only."""

    def __init__(
        self, status: int, code: str, detail: str, hint: str = "", fields: list[FieldProblem] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.hint = hint
        self.fields = fields


def problem(error: BaseException, instance: str) -> Problem:
    """The problem document for ``error``. Anything unknown is a bare 500: its text stays in the log."""
    if isinstance(error, errors.NetdError):
        status, title = next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)
        holder = getattr(error, "holder", "")
        return Problem(
            type=f"urn:netd:problem:{error.code}",
            title=title,
            status=status,
            detail=str(error),
            instance=instance,
            code=error.code,
            hint=error.hint,
            holder=Holder(network=holder) if holder else None,
        )
    if isinstance(error, RequestRefused):
        return Problem(
            type="about:blank" if error.fields is None else f"urn:netd:problem:{error.code}",
            title=HTTPStatus(error.status).phrase,
            status=error.status,
            detail=str(error),
            instance=instance,
            code=error.code,
            hint=error.hint,
            errors=error.fields,
        )
    return Problem(
        type="about:blank",
        title=HTTPStatus.INTERNAL_SERVER_ERROR.phrase,
        status=500,
        detail="netd made a mistake; its log has the details",
        instance=instance,
        code="internal",
    )


def invalid_body(error: ValidationError, known_keys: list[str]) -> RequestRefused:
    """What pydantic found wrong with a body: 400 when it is no JSON, else 422 naming each place."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        why = found[0]["msg"].removeprefix("Invalid JSON: ")
        return RequestRefused(400, "bad_json", f"the body is not JSON: {why}")
    fields = [_field(entry) for entry in found]
    hint = "known keys: " + ", ".join(known_keys) if any(e["type"] == "extra_forbidden" for e in found) else ""
    return RequestRefused(422, "invalid_spec", fields[0].detail, hint, fields)


def _field(entry: Any) -> FieldProblem:
    where = ".".join(str(part) for part in entry["loc"])
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in entry["loc"])
    match entry["type"]:
        case "extra_forbidden":
            detail = f"unknown key {where!r}"
        case "missing":
            detail = f"{where} is required"
        case _:
            detail = f"{where}: {entry['msg']}" if where else entry["msg"]
    return FieldProblem(pointer=pointer, detail=detail)
