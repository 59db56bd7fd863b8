"""What the API takes and gives, as pydantic models: the place where JSON and netd's plain data meet.

Requests are strict: an unknown key or a string where a number belongs is an error that names the place. Port objects
carry the keys of libpod's PortMapping (``podman inspect``); times are RFC 3339 in UTC; sizes are bytes.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from netd.specs import ForwardSpec, ForwardStatus, NetworkSpec, NetworkStatus

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # podman's for containers, with an end
IFNAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")  # dev_valid_name() in net/core/dev.c, without what shells stumble over
RESERVED_IFNAMES = frozenset({".", "..", "lo", "all", "default"})  # the last two are directories of net.ipv4.conf
MAX_PORTS_PER_REQUEST = 1024

Protocol = Literal["tcp", "udp"]
PortNumber = Annotated[int, Field(ge=1, le=65535)]


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as ``2026-01-31T12:00:00.000Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ipv4_or_empty(value: str) -> str:
    if value == "":
        return value
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise PydanticCustomError("ip_address", "{value} is not an IP address", {"value": repr(value)}) from None
    if address.version == 6:
        raise PydanticCustomError("ipv6", "{value}: IPv6 is not supported yet, give an IPv4 address", {"value": value})
    return str(address)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True)


class PortRequest(_Request):
    """One port or a range of consecutive ports to publish."""

    host_ip: str = Field("", description="IPv4 address of the host to listen on; empty is every address")
    host_port: int = Field(0, ge=0, le=65535, description="0 lets the kernel choose, with range 1 only")
    container_port: PortNumber
    protocol: Protocol = "tcp"
    range: int = Field(1, ge=1, le=65535, description="how many consecutive ports")
    container_ip: str = Field("", description="empty is the network's own guest address")

    _addresses = field_validator("host_ip", "container_ip")(_ipv4_or_empty)

    @model_validator(mode="after")
    def _fits(self) -> PortRequest:
        if self.host_port == 0 and self.range > 1:
            raise PydanticCustomError("range", "a range needs a host_port: the kernel chooses single ports only")
        for key, first in (("host_port", self.host_port), ("container_port", self.container_port)):
            if first + self.range - 1 > 65535:
                raise PydanticCustomError(
                    "range", "{key} {first} with range {count} ends above 65535",
                    {"key": key, "first": first, "count": self.range},
                )  # fmt: skip
        return self

    def spec(self) -> ForwardSpec:
        """The same as netd's plain data."""
        return ForwardSpec(
            protocol=self.protocol,
            host_port=self.host_port,
            container_port=self.container_port,
            host_ip=self.host_ip,
            range=self.range,
            container_ip=self.container_ip,
        )


class AttachRequest(_Request):
    """A network namespace to attach: that of a process, or the one at a path. Exactly one of ``pid`` and ``netns``."""

    pid: int | None = Field(None, ge=1, le=4194304, description="a process in the namespace")
    netns: str | None = Field(None, min_length=1, max_length=4096, description="absolute path of the namespace's file")
    lifeline: Literal["pidfd", "path", "explicit"] | None = Field(
        None, description="what ends it: the process (default with pid), unlink of the path (with netns), DELETE"
    )
    name: str = Field("", description="empty is the id")
    origin: Literal["api", "run"] = "api"
    ifname: str = "tap0"
    mtu: int = Field(65520, ge=68, le=65521)
    cidr: str = Field("10.0.2.0/24", description="IPv4 network; the guest gets +100, the gateway +2, the DNS server +3")
    allow_host_loopback: bool = False
    ports: list[PortRequest] = Field(default_factory=list, max_length=MAX_PORTS_PER_REQUEST)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and not NAME.fullmatch(value):
            raise PydanticCustomError(
                "name", "a name is letters, digits, '_', '.', '-', and starts with one of the former"
            )
        return value

    @field_validator("ifname")
    @classmethod
    def _ifname(cls, value: str) -> str:
        if value in RESERVED_IFNAMES or not IFNAME.fullmatch(value):
            raise PydanticCustomError("ifname", "{value} cannot be the name of an interface", {"value": repr(value)})
        return value

    @field_validator("cidr")
    @classmethod
    def _cidr(cls, value: str) -> str:
        try:
            network = ipaddress.IPv4Network(value, strict=True)
        except ValueError as exc:
            raise PydanticCustomError("cidr", "{why}", {"why": f"{value!r} is no IPv4 network: {exc}"}) from None
        if not 1 <= network.prefixlen <= 25:
            raise PydanticCustomError("cidr", "the prefix length is 1 to 25, so that network+100 is in it")
        if network.is_loopback or network.is_multicast or network.network_address.is_unspecified:
            raise PydanticCustomError("cidr", "{value} is not a range for hosts", {"value": value})
        return str(network)

    @model_validator(mode="after")
    def _one_target(self) -> AttachRequest:
        if (self.pid is None) == (self.netns is None):
            raise PydanticCustomError("target", "give exactly one of pid and netns")
        if self.netns is not None and (not self.netns.startswith("/") or "\0" in self.netns):
            raise PydanticCustomError("target", "netns is an absolute path")
        return self

    def spec(self) -> NetworkSpec:
        """The same as netd's plain data, with the addresses that follow from ``cidr``."""
        base = ipaddress.IPv4Network(self.cidr).network_address
        return NetworkSpec(
            name=self.name,
            origin=self.origin,
            ifname=self.ifname,
            mtu=self.mtu,
            cidr=self.cidr,
            guest_ip=str(base + 100),
            gateway_ip=str(base + 2),
            dns_ip=str(base + 3),
            allow_host_loopback=self.allow_host_loopback,
        )


class Port(_Reply):
    """A published port or range as it stands."""

    id: int = Field(description="counts from 1 within its network and is never reused")
    host_ip: str
    host_port: int = Field(description="the real port, also where 0 was asked for")
    container_port: int
    protocol: str
    range: int
    container_ip: str
    origin: str = Field(description="run: declared with the network; api: added later; slirp4netns: its api socket")
    state: str
    connections: int = Field(description="open TCP connections or UDP peers")

    @classmethod
    def of(cls, status: ForwardStatus) -> Port:
        """The reply for ``status``."""
        spec = status.spec
        return cls(
            id=status.id,
            host_ip=spec.host_ip,
            host_port=spec.host_port,
            container_port=spec.container_port,
            protocol=spec.protocol,
            range=spec.range,
            container_ip=spec.container_ip,
            origin=status.origin,
            state=status.state,
            connections=status.connections,
        )


class Network(_Reply):
    """An attached network namespace."""

    id: str
    name: str
    origin: str
    ifname: str
    configure: bool
    mtu: int
    mac: str
    cidr: str
    guest_ip: str
    gateway_ip: str
    dns_ip: str
    outbound_ip: str
    allow_host_loopback: bool
    lifeline: str = Field(description="exit_fd, shim, pidfd, path or explicit")
    lifeline_path: str
    netns_inode: int
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    offload: bool = Field(description="checksum and segmentation offload are on")
    ports: list[Port]
    flows: dict[str, int] = Field(description="open flows by protocol")
    counters: dict[str, int] = Field(description="rx is from the guest, tx to the guest")

    @classmethod
    def of(cls, status: NetworkStatus) -> Network:
        """The reply for ``status``."""
        spec = status.spec
        return cls(
            id=status.id,
            name=spec.name or status.id,
            origin=spec.origin,
            ifname=spec.ifname,
            configure=spec.configure,
            mtu=spec.mtu,
            mac=status.mac,
            cidr=spec.cidr,
            guest_ip=spec.guest_ip,
            gateway_ip=spec.gateway_ip,
            dns_ip=spec.dns_ip,
            outbound_ip=spec.outbound_ip,
            allow_host_loopback=spec.allow_host_loopback,
            lifeline=status.lifeline,
            lifeline_path=status.lifeline_path,
            netns_inode=status.netns_inode,
            created_at=rfc3339(status.created),
            offload=status.offload,
            ports=[Port.of(forward) for forward in status.forwards],
            flows=dict(status.flows),
            counters=dict(status.counters),
        )


class Version(_Reply):
    """Which netd and which API this is."""

    version: str
    api_version: str
    min_api_version: str


class Info(_Reply):
    """The daemon at a glance."""

    version: str
    api_version: str
    pid: int
    uid: int
    python: str
    event_loop: str
    kernel: str
    runtime_dir: str
    started_at: str = Field(json_schema_extra={"format": "date-time"})
    uptime_seconds: float
    networks: int
    ports: int
    flows: dict[str, int]
    memory_bytes: int = Field(description="resident set size of the daemon")


class Holder(_Reply):
    """Who has what was asked for."""

    network: str


class FieldProblem(_Reply):
    """One thing wrong in a request body."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the body")
    detail: str


class Problem(_Reply):
    """RFC 9457 problem details. ``code`` is the stable name for programs."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    hint: str = ""
    holder: Holder | None = None
    errors: list[FieldProblem] | None = None
