"""Everything that can go wrong, in the owner's words.

Each class is one thing a person can act upon. ``code`` is its stable name for programs; ``hint`` says what to
do about it, or is empty. HTTP statuses, exit codes and Podman's phrases are added by the doors (api, cli, dialects).
"""

from __future__ import annotations


class NetdError(Exception):
    """The base of all: ``str(e)`` is one line for a person, ``e.hint`` one more or empty."""

    code = "failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidSpec(NetdError):
    """A request that can never succeed as written."""

    code = "invalid_spec"


class NoSuchNetwork(NetdError):
    """No attached network has this id, id prefix or name."""

    code = "no_such_network"


class AmbiguousNetwork(NetdError):
    """An id prefix that fits several networks; the message lists them."""

    code = "ambiguous_network"


class NetworkExists(NetdError):
    """The name is taken, or the namespace already has a network of ours under that interface name."""

    code = "network_exists"


class NoSuchPort(NetdError):
    """The network has no port forward of that id."""

    code = "no_such_port"


class PortUnavailable(NetdError):
    """A host port cannot be published: ``port`` (0 where that is not known), and the kernel's ``reason``."""

    code = "port_unavailable"

    def __init__(self, message: str, hint: str = "", port: int = 0, reason: str = "") -> None:
        super().__init__(message, hint)
        self.port = port
        self.reason = reason


class PortInUse(PortUnavailable):
    """The host address and port are taken; ``holder`` names our network that has it, or is empty."""

    code = "port_in_use"

    def __init__(
        self, message: str, holder: str = "", hint: str = "", port: int = 0, reason: str = "Address already in use"
    ) -> None:
        super().__init__(message, hint, port, reason)
        self.holder = holder


class PortPrivileged(PortUnavailable):
    """The host port is below net.ipv4.ip_unprivileged_port_start."""

    code = "port_privileged"


class AddressUnavailable(PortUnavailable):
    """The host address to bind is not one of this machine's."""

    code = "address_unavailable"


class NamespaceUnavailable(NetdError):
    """The network namespace is gone, is none, or is not the caller's."""

    code = "namespace_unavailable"


class TapUnavailable(NetdError):
    """The TAP device could not be made: /dev/net/tun, a busy name, a refusal of the kernel."""

    code = "tap_unavailable"


class AgentUnavailable(NetdError):
    """The process that enters namespaces did not answer in time, or could not be started."""

    code = "agent_unavailable"


class LimitReached(NetdError):
    """A bound of netd's own (networks, forwards, …) is reached; the message says which and its value."""

    code = "limit_reached"


class ShuttingDown(NetdError):
    """The daemon is stopping and takes nothing new."""

    code = "shutting_down"
