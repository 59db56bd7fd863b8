"""Every bound of one network's packet path, in one place. A test reaches each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and times of one network. Bytes and seconds."""

    tcp_flows: int = 16384  # connections in any state
    tcp_half_open: int = 1024  # of those, waiting for the host's connect or the guest's SYN-ACK
    udp_flows: int = 4096
    echo_flows: int = 256
    neighbors: int = 256
    peers: int = 256  # pairs of addresses of which is kept what their TCP connections have in common
    memory: int = 64 << 20  # bytes held for all connections, both directions; beyond it flows are throttled
    receive_window: int = 1 << 20  # most a connection holds of what the host socket does not take
    receive_window_plain: int = 256 << 10  # the same without offload: the TAP's queue counts frames (DESIGN §1.10)
    send_buffer: int = 1 << 20  # most a connection has unacknowledged in the guest
    throttled: int = 4096  # what a connection may still hold each way once memory is used up

    rto_initial: float = 1.0  # RFC 6298 §2.1
    rto_min: float = 0.06  # where the RFC says 1 s: the guest is on this machine, and delays an ACK by 0.04 s at most
    rto_max: float = 60.0
    rescue: float = 0.005  # within fast recovery, and
    rescues: int = 4  # so often for one hole, before the time-out proper
    retries: int = 12  # retransmissions of one segment before the connection is given up: some minutes
    syn_retries: int = 5
    ack_delay: float = 0.001  # how long the ACK of a small request, or a FIN, waits for one; RFC 9293 §3.8.6.3: 0.5
    ack_repeat: float = 0.002  # where frames get lost: how long nothing may follow an ACK before it is sent once more
    time_wait: float = 1.0
    fin_wait: float = 600.0  # half-closed and silent for so long: probed
    persist_max: float = 60.0

    fragmented: int = 64  # datagrams being reassembled,
    fragments_each: int = 128  # fragments of one (65,535 bytes at MTU 576 are 119),
    fragment_bytes: int = 1 << 20  # bytes of all
    reassembly: float = 15.0  # RFC 791 §3.2; RFC 8200 §4.5 says 60 for paths longer than a device

    probe: float = 1.0  # between questions for a neighbor that does not answer: RETRANS_TIMER, RFC 4861 §10
    advertise: float = 600.0  # unsolicited router advertisements, RFC 4861 §6.2.1

    udp_idle: float = 240.0
    udp_idle_dns: float = 10.0  # replies from port 53
    echo_idle: float = 30.0
