"""What the API takes and gives, as pydantic models: the place where JSON and netd's plain data meet.

Requests are strict: an unknown key or a string where a number belongs is an error that names the place. Port objects
carry the keys of libpod's PortMapping (``podman inspect``); times are RFC 3339 in UTC; sizes are bytes.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from netd.specs import ForwardSpec, ForwardStatus, NetworkSpec, NetworkStatus

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # podman's for containers, with an end
IFNAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")  # dev_valid_name() in net/core/dev.c, without what shells stumble over
RESERVED_IFNAMES = frozenset({".", "..", "lo", "all", "default"})  # the last two are directories of net.ipv4.conf
MAX_PORTS_PER_REQUEST = 1024
ROUTER_IP6 = "fe80::2"  # libslirp's
IPV6_MIN_MTU = 1280  # RFC 8200 §5

Protocol = Literal["tcp", "udp"]
PortNumber = Annotated[int, Field(ge=1, le=65535)]


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as ``2026-01-31T12:00:00.000Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unique_local_network() -> str:
    """A /64 nobody else has: fd, 40 random bits, subnet 0 (RFC 4193 §3.1, §3.2.2)."""
    return str(ipaddress.IPv6Network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64)))


def slaac_address(cidr6: str, mac: str) -> str:
    """The address that an interface of this MAC makes itself in a /64 (RFC 4862 §5.5.3, RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 0x02, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return str(ipaddress.IPv6Network(cidr6).network_address + int.from_bytes(identifier, "big"))


def _ip_or_empty(value: str) -> str:
    """An IPv4 or IPv6 address in its canonical form (RFC 5952); an IPv4-mapped one becomes the IPv4 address."""
    if value == "":
        return value
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        bare = " (an IPv6 address is written without brackets here)" if value.startswith("[") else ""
        raise PydanticCustomError(
            "ip_address", "{value} is not an IP address{bare}", {"value": repr(value), "bare": bare}
        ) from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise PydanticCustomError(
                "ip_address", "{value}: an address with a zone is not supported", {"value": value}
            )
        return str(address.ipv4_mapped or address)
    return str(address)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True)


class PortRequest(_Request):
    """One port or a range of consecutive ports to publish."""

    host_ip: str = Field(
        "", description="IPv4 or IPv6 address of the host to listen on; empty is every address of both families"
    )
    host_port: int = Field(0, ge=0, le=65535, description="0 lets the kernel choose, with range 1 only")
    container_port: PortNumber
    protocol: Protocol = "tcp"
    range: int = Field(1, ge=1, le=65535, description="how many consecutive ports")
    container_ip: str = Field("", description="IPv4 or IPv6 address; empty is the network's own guest address")

    _addresses = field_validator("host_ip", "container_ip")(_ip_or_empty)

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
    ipv6: bool = Field(True, description="false: IPv4 alone; an mtu below 1280 means that as well")
    cidr6: str = Field(
        "",
        description="IPv6 network, a /64; empty is a random unique local one (RFC 4193). The gateway is ::2 in it, the "
        "DNS server ::3, the guest has the address that SLAAC makes of its MAC",
    )
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

    @field_validator("cidr6")
    @classmethod
    def _cidr6(cls, value: str) -> str:
        if value == "":
            return value
        try:
            network = ipaddress.IPv6Network(value, strict=True)
        except ValueError as exc:
            raise PydanticCustomError("cidr6", "{why}", {"why": f"{value!r} is no IPv6 network: {exc}"}) from None
        if network.prefixlen != 64:  # RFC 4291 §2.5.1, RFC 4862 §5.5.3: SLAAC needs 64 bits
            raise PydanticCustomError("cidr6", "the prefix length is 64")
        first = network.network_address
        if "%" in value or first.is_multicast or first.is_link_local or first.is_unspecified:
            raise PydanticCustomError("cidr6", "{value} is not a range for hosts", {"value": value})
        return str(network)

    @model_validator(mode="after")
    def _ipv6_or_not(self) -> AttachRequest:
        if not self.ipv6 and self.cidr6:
            raise PydanticCustomError("cidr6", "cidr6 and ipv6 false do not go together")
        asked_for = self.ipv6 and (self.cidr6 != "" or "ipv6" in self.model_fields_set)
        if asked_for and self.mtu < IPV6_MIN_MTU:
            raise PydanticCustomError("mtu", "mtu {mtu} is less than IPv6 needs, 1280", {"mtu": self.mtu})
        for number, port in enumerate(self.ports):
            if ":" in port.container_ip and not self.has_ipv6:
                raise PydanticCustomError(
                    "ports", "ports.{number}: container_ip {ip} is IPv6, the network has none",
                    {"number": number, "ip": port.container_ip},
                )  # fmt: skip
        return self

    @property
    def has_ipv6(self) -> bool:
        """Whether the network is to have IPv6."""
        return self.ipv6 and self.mtu >= IPV6_MIN_MTU

    @model_validator(mode="after")
    def _one_target(self) -> AttachRequest:
        if (self.pid is None) == (self.netns is None):
            raise PydanticCustomError("target", "give exactly one of pid and netns")
        if self.netns is not None and (not self.netns.startswith("/") or "\0" in self.netns):
            raise PydanticCustomError("target", "netns is an absolute path")
        return self

    def spec(self) -> NetworkSpec:
        """The same as netd's plain data, with the addresses that follow from ``cidr`` and ``cidr6``.

        Each call makes up a network of its own where ``cidr6`` is empty.
        """
        base = ipaddress.IPv4Network(self.cidr).network_address
        cidr6 = gateway6 = dns6 = ""
        if self.has_ipv6:
            cidr6 = self.cidr6 or unique_local_network()
            base6 = ipaddress.IPv6Network(cidr6).network_address
            gateway6, dns6 = str(base6 + 2), str(base6 + 3)
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
            cidr6=cidr6,
            gateway_ip6=gateway6,
            dns_ip6=dns6,
            router_ip6=ROUTER_IP6,
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
    interface: str = Field(description="only what comes in by this interface of the host; empty is any")
    origin: str = Field(
        description="run: declared with the network; api: added later; slirp4netns: its api socket; "
        "pasta: its command line; auto: somebody in the guest listens there; pesto: added by it"
    )
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
            interface=spec.interface,
            origin=status.origin,
            state=status.state,
            connections=status.connections,
        )


class LoopbackPort(_Reply):
    """A port of the guest's own loopback that leads to the host's (pasta's -T and -U)."""

    protocol: str
    port: int
    host_port: int
    connections: int


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
    outbound_ip: str = Field(description="source address of the host's sockets; empty is the kernel's choice")
    cidr6: str = Field(description="empty is no IPv6, and so are the five below")
    guest_ip6: str
    gateway_ip6: str = Field(description="stands for the host, as gateway_ip does")
    dns_ip6: str
    router_ip6: str = Field(description="link-local; next hop of the guest's default route")
    outbound_ip6: str
    outbound_interface: str = Field(description="the host's sockets are bound to it; empty is the kernel's choice")
    outbound_interface6: str
    allow_host_loopback: bool
    host_like: bool = Field(description="the guest has the host's own address, and all others are led to who has them")
    host_loopback_ip: str = Field(description="of a host-like network: stands for the host's 127.0.0.1")
    host_loopback_ip6: str
    host_ips: list[str] = Field(description="of a host-like network: stand for the host's own address")
    addresses: list[str] = Field(description="all that the guest was given, where they are more than two")
    routes: list[str] = Field(description="all that the guest was given, where they are more than the default route")
    dns_hosts: list[str] = Field(description="name servers instead of the host's")
    without: list[str] = Field(description="protocols that are not served")
    lifeline: str = Field(description="exit_fd, shim, pidfd, path or explicit")
    lifeline_path: str
    netns_inode: int
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    offload: bool = Field(description="checksum and segmentation offload are on")
    ports: list[Port]
    loopback_ports: list[LoopbackPort]
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
            cidr6=spec.cidr6,
            guest_ip6=spec.cidr6 and (spec.guest_ip6 or slaac_address(spec.cidr6, status.mac)),
            gateway_ip6=spec.cidr6 and spec.gateway_ip6,
            dns_ip6=spec.cidr6 and spec.dns_ip6,
            router_ip6=spec.cidr6 and spec.router_ip6,
            outbound_ip6=spec.cidr6 and spec.outbound_ip6,
            outbound_interface=spec.outbound_interface,
            outbound_interface6=spec.outbound_interface6,
            allow_host_loopback=spec.allow_host_loopback,
            host_like=spec.host_like,
            host_loopback_ip=spec.host_loopback_ip,
            host_loopback_ip6=spec.host_loopback_ip6,
            host_ips=list(spec.host_ips),
            addresses=list(spec.addresses),
            routes=list(spec.routes),
            dns_hosts=list(spec.dns_hosts),
            without=list(spec.without),
            lifeline=status.lifeline,
            lifeline_path=status.lifeline_path,
            netns_inode=status.netns_inode,
            created_at=rfc3339(status.created),
            offload=status.offload,
            ports=[Port.of(forward) for forward in status.forwards],
            loopback_ports=[
                LoopbackPort(protocol=p.protocol, port=p.port, host_port=p.host_port, connections=p.connections)
                for p in status.loopback_ports
            ],
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
    compiled: bool = Field(description="the packet path runs as machine code, not as Python")
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
