"""Named counters of one network. Every drop has a name."""

from __future__ import annotations

from typing import Final

_NAMES: Final = (
    "dhcp_answered",
    "dns_dropped",
    "dns_failed",
    "dns_queries",
    "drop_arp",
    "drop_bad_checksum",
    "drop_bad_header",
    "drop_dhcp",
    "drop_echo_limit",
    "drop_echo_refused",
    "drop_ethertype",
    "drop_fragment",
    "drop_group",
    "drop_icmp",
    "drop_link",
    "drop_martian",
    "drop_ndp",
    "drop_not_served",
    "drop_protocol",
    "drop_short",
    "drop_tcp_memory",
    "drop_tcp_out_of_order",
    "drop_tcp_out_of_window",
    "drop_tcp_stray",
    "drop_too_big",
    "drop_udp_host",
    "reassembled",
    "rx_bytes",
    "rx_frames",
    "tcp_acks_repeated",
    "tcp_evicted",
    "tcp_held",
    "tcp_opened",
    "tcp_refused",
    "tcp_refused_limit",
    "tcp_resets_from_guest",
    "tcp_resets_to_guest",
    "tcp_retransmits",
    "tcp_timeouts",
    "tx_bytes",
    "tx_frames",
    "udp_evicted",
    "udp_opened",
)


class Counters:
    """Plain integers, incremented in place by the rooms of the packet path. rx is from the guest, tx to the guest."""

    __slots__ = _NAMES

    dhcp_answered: int
    dns_dropped: int
    dns_failed: int
    dns_queries: int
    drop_arp: int
    drop_bad_checksum: int
    drop_bad_header: int
    drop_dhcp: int
    drop_echo_limit: int
    drop_echo_refused: int
    drop_ethertype: int
    drop_fragment: int
    drop_group: int
    drop_icmp: int
    drop_link: int
    drop_martian: int
    drop_ndp: int
    drop_not_served: int
    drop_protocol: int
    drop_short: int
    drop_tcp_memory: int
    drop_tcp_out_of_order: int
    drop_tcp_out_of_window: int
    drop_tcp_stray: int
    drop_too_big: int
    drop_udp_host: int
    reassembled: int
    rx_bytes: int
    rx_frames: int
    tcp_acks_repeated: int
    tcp_evicted: int
    tcp_held: int
    tcp_opened: int
    tcp_refused: int
    tcp_refused_limit: int
    tcp_resets_from_guest: int
    tcp_resets_to_guest: int
    tcp_retransmits: int
    tcp_timeouts: int
    tx_bytes: int
    tx_frames: int
    udp_evicted: int
    udp_opened: int

    def __init__(self) -> None:
        for name in _NAMES:
            setattr(self, name, 0)

    def as_dict(self) -> dict[str, int]:
        """All of them by name."""
        return {name: getattr(self, name) for name in _NAMES}


class Memory:
    """Bytes that one network's connections hold, against their common bound."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.used = 0
        self.limit = limit
