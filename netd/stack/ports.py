"""What the stack needs of the host side. The sockets that fulfil it live in ``relay/``.

The stack calls these from within a frame or a timer; none may block, raise OSError, or keep a view it was handed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from netd.stack.flow import EchoFlow, UdpFlow
from netd.wire import icmpv4

Buffer = bytes | bytearray | memoryview

# Why the host could not connect: the reason as an ICMPv4 unreachable code (whatever the family), or an RST.
RESET: Final = -1
NET_UNREACHABLE: Final = icmpv4.NET_UNREACHABLE
HOST_UNREACHABLE: Final = icmpv4.HOST_UNREACHABLE
PORT_UNREACHABLE: Final = icmpv4.PORT_UNREACHABLE
ADMIN_PROHIBITED: Final = icmpv4.ADMIN_PROHIBITED


@dataclass(frozen=True, slots=True)
class HostError:
    """What the host was told of a datagram of the guest's, as the ICMP error the guest is to get.

    ``type`` and ``code`` are ICMPv4's for an IPv4 flow and ICMPv6's for an IPv6 flow; ``info`` is the MTU that goes
    with "fragmentation needed" and "packet too big"; ``offender`` the address of the router or host that said so (its
    packed form, of the flow's family), b"" where it was this machine.
    """

    type: int
    code: int
    info: int = 0
    offender: bytes = b""


class GuestStream(Protocol):
    """The guest's side of one TCP connection, as the host side drives it."""

    def host_connected(self, now: float) -> None:
        """The host's connect succeeded."""

    def host_refused(self, code: int, now: float) -> None:
        """It failed: RESET or one of the codes above."""

    def room(self, frames: int = 1) -> int:
        """How many bytes may be read from the host now, to be sent in so many frames at most."""

    def from_host(self, data: bytes, now: float) -> None:
        """1..``room(frames)`` bytes; ``data`` is kept."""

    def host_paused(self, now: float) -> None:
        """There was no room; ``HostStream.resume`` will be called."""

    def host_eof(self, now: float, last: bytes = b"") -> None:
        """The host's peer has finished sending; ``last``, no more than there was room for, came before that."""

    def host_writable(self, now: float) -> None:
        """The answer to ``want_write``."""

    def host_reset(self, now: float) -> None:
        """The host side failed."""


class Transmit(Protocol):
    """Frames to the guest: ``header`` + ``payload`` is a struct virtio_net_hdr (``wire.vnet_hdr``), then one Ethernet
    frame.

    The virtio_net_hdr says what the device is to complete: the layer-4 checksum, the cutting of a super-frame. On a
    link without offload it is all zero. False: the device did not take the frame (treated as lost).
    """

    def __call__(self, header: Buffer, payload: Buffer) -> bool: ...


class HostStream(Protocol):
    """The host side of one TCP connection."""

    def write(self, view: Buffer) -> int:
        """Take as much as the socket takes now; the count of bytes. A failure has called ``host_reset`` on return."""

    def want_write(self) -> None:
        """Call ``connection.host_writable`` once when the socket takes bytes again."""

    def resume(self, now: float) -> None:
        """The guest has room again: read on (``connection.room`` says how much)."""

    def finish(self) -> None:
        """The guest sent FIN and all its bytes are written: shut down our sending side."""

    def guest_refused(self, now: float) -> None:
        """Nobody listens in the guest: another ``connection`` may be begun elsewhere, else as ``abort``."""

    def abort(self) -> None:
        """Reset towards the host, and be done."""

    def close(self) -> None:
        """Both directions are finished: be done."""


class HostDatagrams(Protocol):
    """A host UDP socket that serves one guest endpoint, or a published port. IPv4 or IPv6, as its flows are."""

    def send(self, flow: UdpFlow, payload: Buffer, hops: int, segment: int) -> None:
        """One datagram to the flow's peer, or with ``segment`` > 0 several of that size one behind the other (UDP GSO),
        the last perhaps shorter.

        ``hops`` is the guest's TTL << 8 | TOS (IPv6: hop limit and traffic class). Failures are counted, and told by
        ``flow.refused``.
        """

    def adopt(self, flow: UdpFlow) -> None:
        """Serve one flow more."""

    def release(self, flow: UdpFlow) -> None:
        """The flow is over; the last one of an endpoint closes its socket."""


class HostEcho(Protocol):
    """A host ping socket for one guest echo identifier."""

    def send(self, flow: EchoFlow, sequence: int, payload: Buffer, hops: int) -> None:
        """One echo request with that sequence number; ``hops`` as above."""

    def close(self) -> None:
        """The flow is over."""


class Host(Protocol):
    """How the stack reaches the host's network."""

    def connect(self, connection: GuestStream, ip: bytes, port: int) -> HostStream:
        """Begin to connect; the outcome is told later by ``host_connected`` or ``host_refused``."""

    def connect_resolver(self, connection: GuestStream, port: int) -> HostStream:
        """The same to ``port`` of a name server of the host's, the next one where one refuses."""

    def open_datagrams(self, flow: UdpFlow) -> HostDatagrams | None:
        """A socket of the flow's family for its guest endpoint, shared by its flows; it has adopted this one. None:
        refused."""

    def resolve(self, flow: UdpFlow, query: Buffer) -> None:
        """A DNS message for the host's name servers; the answer comes by ``flow.to_guest``."""

    def open_echo(self, flow: EchoFlow) -> HostEcho | int:
        """A ping socket of the flow's family, or the reason why not (an ICMPv4 unreachable code)."""


class Services(Protocol):
    """What the gateway answers by itself."""

    def dhcpv4(self, message: bytes, mac: bytes, now: float) -> tuple[bytes, bytes] | None:
        """A DHCPv4 message from ``mac``: the answer and the address it goes to (RFC 2131 §4.1)."""

    def dhcpv6(self, message: bytes, now: float) -> bytes | None:
        """A DHCPv6 message: the answer, to whoever asked."""
