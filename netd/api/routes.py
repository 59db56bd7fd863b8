"""What the API can do: one function per operation, and the table that both the server and the OpenAPI document read."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

import netd
from netd.api import metrics, models
from netd.api.errors import RequestRefused, invalid_body
from netd.api.namespaces import open_namespace
from netd.api.openapi import describe
from netd.errors import InvalidSpec, NoSuchNetwork, NoSuchPort
from netd.specs import NetworkStatus

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

API_VERSION = "1"
MIN_API_VERSION = "1"
MAX_BODY = 64 << 10
BODY_TIMEOUT = 10.0  # seconds from the end of the headers to the end of the body
MAX_PAGE = 1000

B = TypeVar("B", bound=BaseModel)
_NETWORKS = TypeAdapter(list[models.Network])
_PORTS = TypeAdapter(list[models.Port])
_FILTERS = TypeAdapter(dict[str, list[str]])


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter: JSON schema type and what it is for."""

    name: str
    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. ``reply`` is a model, ``list[model]``, a media type, or None for no content."""

    method: str
    path: str
    name: str
    summary: str
    act: Callable[[Daemon, web.Request], Awaitable[web.Response]]
    reply: Any
    status: int = 200
    body: type[BaseModel] | None = None
    query: tuple[Parameter, ...] = field(default=())
    problems: tuple[int, ...] = field(default=())


# ---- the daemon itself


async def ping(daemon: Daemon, request: web.Request) -> web.Response:
    return web.Response(text="OK")


async def version(daemon: Daemon, request: web.Request) -> web.Response:
    return _reply(
        models.Version(version=netd.__version__, api_version=API_VERSION, min_api_version=MIN_API_VERSION),
    )


async def info(daemon: Daemon, request: web.Request) -> web.Response:
    statuses = [network.status() for network in daemon.networks.values()]
    flows: dict[str, int] = {}
    for status in statuses:
        for protocol, count in status.flows.items():
            flows[protocol] = flows.get(protocol, 0) + count
    loop = type(asyncio.get_running_loop())
    return _reply(
        models.Info(
            version=netd.__version__,
            api_version=API_VERSION,
            pid=os.getpid(),
            uid=os.geteuid(),
            python=platform.python_version(),
            compiled=daemon.compiled,
            event_loop="uvloop" if loop.__module__.startswith("uvloop") else "asyncio",
            kernel=os.uname().release,
            runtime_dir=str(daemon.settings.runtime_dir),
            started_at=models.rfc3339(daemon.started),
            uptime_seconds=round(max(0.0, time.time() - daemon.started), 3),
            networks=len(statuses),
            ports=sum(len(status.forwards) for status in statuses),
            flows=flows,
            memory_bytes=metrics.resident_bytes(),
        )
    )


async def openapi(daemon: Daemon, request: web.Request) -> web.Response:
    return web.json_response(describe(ROUTES, netd.__version__))


async def prometheus(daemon: Daemon, request: web.Request) -> web.Response:
    text = metrics.render(netd.__version__, API_VERSION, [network.status() for network in daemon.networks.values()])
    return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


# ---- networks


async def list_networks(daemon: Daemon, request: web.Request) -> web.Response:
    filters = _filters(request)
    limit = _limit(request)
    after = _cursor(request)
    statuses = sorted((n.status() for n in daemon.networks.values()), key=lambda status: (status.created, status.id))
    found = [
        models.Network.of(status)
        for status in statuses
        if (after is None or (status.created, status.id) > after) and _matches(status, filters)
    ]
    headers = {}
    if limit is not None and len(found) > limit:
        found = found[:limit]
        last = daemon.networks[found[-1].id].status()
        query = {**request.query, "cursor": f"{last.created!r}_{last.id}"}
        headers["Link"] = f'<{request.path}?{urlencode(query)}>; rel="next"'  # RFC 8288
    return web.Response(body=_NETWORKS.dump_json(found), content_type="application/json", headers=headers)


async def attach_network(daemon: Daemon, request: web.Request) -> web.Response:
    wanted = await _body(request, models.AttachRequest)
    netns_fd, lifeline = open_namespace(wanted.pid, wanted.netns, wanted.lifeline)
    network = await daemon.attach(wanted.spec(), netns_fd, lifeline)
    try:
        for port in wanted.ports:
            network.add_forward(port.spec(), "run")
    except BaseException:
        await daemon.detach(network)
        raise
    daemon.changed(network)
    return _reply(models.Network.of(network.status()), 201, f"/v1/networks/{network.id}")


async def get_network(daemon: Daemon, request: web.Request) -> web.Response:
    return _reply(models.Network.of(_network(daemon, request).status()))


async def detach_network(daemon: Daemon, request: web.Request) -> web.Response:
    ignore = _flag(request, "ignore")
    try:
        network = _network(daemon, request)
    except NoSuchNetwork:
        if not ignore:
            raise
    else:
        await daemon.detach(network)
    return web.Response(status=204)


# ---- port forwards


async def list_ports(daemon: Daemon, request: web.Request) -> web.Response:
    found = [models.Port.of(status) for status in _network(daemon, request).forwards()]
    return web.Response(body=_PORTS.dump_json(found), content_type="application/json")


async def add_port(daemon: Daemon, request: web.Request) -> web.Response:
    network = _network(daemon, request)
    wanted = await _body(request, models.PortRequest)
    if ":" in wanted.container_ip and not network.spec.cidr6:
        raise InvalidSpec(f"container_ip {wanted.container_ip} is IPv6, network {network.name} has none")
    status = network.add_forward(wanted.spec(), "api")
    daemon.changed(network)
    return _reply(models.Port.of(status), 201, f"/v1/networks/{network.id}/ports/{status.id}")


async def get_port(daemon: Daemon, request: web.Request) -> web.Response:
    return _reply(models.Port.of(_network(daemon, request).forward(_port_id(request))))


async def remove_port(daemon: Daemon, request: web.Request) -> web.Response:
    ignore, close = _flag(request, "ignore"), _flag(request, "close")
    try:
        network = _network(daemon, request)
        network.remove_forward(_port_id(request), close_connections=close)
    except (NoSuchNetwork, NoSuchPort):
        if not ignore:
            raise
    else:
        daemon.changed(network)
    return web.Response(status=204)


# ---- reading requests, writing replies


def _reply(model: BaseModel, status: int = 200, location: str = "") -> web.Response:
    headers = {"Location": location} if location else None
    return web.Response(
        body=model.model_dump_json().encode(), status=status, content_type="application/json", headers=headers
    )


async def _body(request: web.Request, model: type[B]) -> B:
    """The request's body as ``model``, whatever its Content-Type says (curl -d says a form)."""
    too_large = RequestRefused(413, "body_too_large", f"the body is larger than {MAX_BODY} bytes")
    if (request.content_length or 0) > MAX_BODY:
        raise too_large
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except TimeoutError:
        raise RequestRefused(408, "request_timeout", f"the body did not arrive within {BODY_TIMEOUT:g} s") from None
    try:
        return model.model_validate_json(raw)
    except ValidationError as exc:
        raise invalid_body(exc, list(model.model_fields)) from None


def _network(daemon: Daemon, request: web.Request) -> Network:
    return daemon.network(request.match_info["id"])


def _port_id(request: web.Request) -> int:
    text = request.match_info["port_id"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise NoSuchPort(f"no port forward {text!r}", "a port id is a number: see GET …/ports")
    return int(text)


def _flag(request: web.Request, name: str) -> bool:
    match request.query.get(name, "false").lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise RequestRefused(400, "bad_query", f"{name} is true or false")


def _limit(request: web.Request) -> int | None:
    text = request.query.get("limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE):
        raise RequestRefused(400, "bad_query", f"limit is a number from 1 to {MAX_PAGE}")
    return int(text)


def _cursor(request: web.Request) -> tuple[float, str] | None:
    text = request.query.get("cursor")
    if text is None:
        return None
    created, _, last = text.partition("_")
    try:
        return float(created), last
    except ValueError:
        raise RequestRefused(400, "bad_query", "the cursor is not one that a list gave") from None


def _filters(request: web.Request) -> dict[str, list[str]]:
    try:
        filters = _FILTERS.validate_json(request.query.get("filters", "{}"))
    except ValidationError:
        raise RequestRefused(
            400, "bad_query", "filters is not a JSON map of lists of strings", 'for example {"name":["web"]}'
        ) from None
    for key in filters:
        if key not in FILTER_KEYS:
            hint = "filters: " + ", ".join(FILTER_KEYS)
            raise RequestRefused(422, "invalid_spec", f"{key} is an invalid filter", hint)
    return filters


def _has_port(status: NetworkStatus, value: str) -> bool:
    number, _, protocol = value.partition("/")
    return any(
        protocol in ("", forward.spec.protocol)
        and number.isdecimal()
        and 0 <= int(number[:9]) - forward.spec.host_port < forward.spec.range
        for forward in status.forwards
    )


FILTER_KEYS: dict[str, Callable[[NetworkStatus, str], bool]] = {
    "id": lambda status, value: status.id.startswith(value),
    "name": lambda status, value: value in (status.spec.name or status.id),
    "origin": lambda status, value: status.spec.origin == value,
    "lifeline": lambda status, value: status.lifeline == value,
    "port": _has_port,
}


def _matches(status: NetworkStatus, filters: dict[str, list[str]]) -> bool:
    """Every key must fit, by any of its values (podman's rule)."""
    return all(any(FILTER_KEYS[key](status, value) for value in values) for key, values in filters.items())


_IGNORE = Parameter("ignore", "boolean", "what is not there counts as removed")
_LIST = (
    Parameter("filters", "string", "JSON map of lists; keys: " + ", ".join(FILTER_KEYS) + " (a part of a name does)"),
    Parameter("limit", "integer", f"1 to {MAX_PAGE}; the rest is behind the Link header's next"),
    Parameter("cursor", "string", "where the page before ended"),
)

ROUTES: tuple[Route, ...] = (
    Route("GET", "/_ping", "ping", "Is anybody there", ping, "text/plain"),
    Route("GET", "/healthz", "healthz", "Is the daemon serving", ping, "text/plain", problems=(503,)),
    Route("GET", "/metrics", "metrics", "Prometheus text format 0.0.4", prometheus, "text/plain"),
    Route("GET", "/v1/version", "version", "Version of netd and of the API", version, models.Version),
    Route("GET", "/v1/info", "info", "The daemon at a glance", info, models.Info),
    Route("GET", "/v1/openapi.json", "openapi", "This description", openapi, "application/json"),
    Route(
        "GET", "/v1/networks", "list_networks", "Attached networks, oldest first", list_networks, list[models.Network],
        query=_LIST, problems=(400, 422),
    ),
    Route(
        "POST", "/v1/networks", "attach_network", "Attach a network namespace", attach_network, models.Network, 201,
        models.AttachRequest, problems=(400, 408, 409, 413, 422, 503),
    ),
    Route(
        "GET", "/v1/networks/{id}", "get_network", "One network, by id, unique id prefix or name", get_network,
        models.Network, problems=(404, 409),
    ),
    Route(
        "DELETE", "/v1/networks/{id}", "detach_network", "Detach a network", detach_network, None, 204,
        query=(_IGNORE,), problems=(400, 404, 409),
    ),
    Route(
        "GET", "/v1/networks/{id}/ports", "list_ports", "Published ports of a network", list_ports, list[models.Port],
        problems=(404, 409),
    ),
    Route(
        "POST", "/v1/networks/{id}/ports", "add_port", "Publish a port", add_port, models.Port, 201,
        models.PortRequest, problems=(400, 404, 408, 409, 413, 422),
    ),
    Route(
        "GET", "/v1/networks/{id}/ports/{port_id}", "get_port", "One published port", get_port, models.Port,
        problems=(404, 409),
    ),
    Route(
        "DELETE", "/v1/networks/{id}/ports/{port_id}", "remove_port", "Unpublish a port", remove_port, None, 204,
        query=(_IGNORE, Parameter("close", "boolean", "end established connections as well")), problems=(400, 404, 409),
    ),
)  # fmt: skip
