"""Prometheus text format 0.0.4: one prefix, base units, ``_total`` on counters, few label values.

Directions are the container's: what it received is what the stack counts as tx.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from netd.specs import NetworkStatus

_PLAIN = {  # counter of the stack: (family, help, more labels)
    "rx_bytes": ("netd_network_transmit_bytes_total", "Bytes the container sent.", {}),
    "tx_bytes": ("netd_network_receive_bytes_total", "Bytes the container received.", {}),
    "rx_frames": ("netd_network_transmit_packets_total", "Frames the container sent.", {}),
    "tx_frames": ("netd_network_receive_packets_total", "Frames the container received.", {}),
    "tcp_opened": ("netd_flows_opened_total", "Flows opened.", {"protocol": "tcp"}),
    "udp_opened": ("netd_flows_opened_total", "Flows opened.", {"protocol": "udp"}),
    "tcp_retransmits": ("netd_tcp_retransmitted_segments_total", "Segments sent again to the container.", {}),
    "dns_queries": ("netd_dns_queries_total", "DNS queries the forwarder took.", {}),
    "tcp_refused": ("netd_flow_failures_total", "Flows that failed.", {"reason": "refused"}),
    "tcp_refused_limit": ("netd_flow_failures_total", "Flows that failed.", {"reason": "limit"}),
    "tcp_timeouts": ("netd_flow_failures_total", "Flows that failed.", {"reason": "timeout"}),
    "tcp_evicted": ("netd_flow_failures_total", "Flows that failed.", {"reason": "evicted"}),
}  # fmt: skip
_DROPPED = ("netd_network_dropped_packets_total", "Frames of the container that were dropped, by reason.")
_OTHER = ("netd_network_events_total", "What else the packet path counts, by the counter's name.")


class Exposition:
    """Samples by family, in the order of first use."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def add(self, family: str, kind: str, text: str, value: float, labels: dict[str, str] | None = None) -> None:
        """One sample. ``kind`` is counter or gauge; ``text`` the family's HELP."""
        lines = self._families.setdefault(family, [f"# HELP {family} {text}", f"# TYPE {family} {kind}"])
        inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in (labels or {}).items())
        lines.append(f"{family}{{{inner}}} {value}" if inner else f"{family} {value}")

    def text(self) -> str:
        """The whole exposition."""
        return "".join(line + "\n" for lines in self._families.values() for line in lines)


def render(version: str, api_version: str, networks: Iterable[NetworkStatus]) -> str:
    """All metrics of the daemon."""
    out = Exposition()
    networks = list(networks)
    labels = {"version": version, "api_version": api_version}
    out.add("netd_build_info", "gauge", "Which netd this is.", 1, labels)
    out.add("netd_networks", "gauge", "Attached networks.", len(networks))
    ports: dict[tuple[str, str], int] = {}
    for status in networks:
        _network(out, status)
        for forward in status.forwards:
            key = (forward.spec.protocol, forward.origin)
            ports[key] = ports.get(key, 0) + 1
    for (protocol, origin), count in sorted(ports.items()):
        labels = {"protocol": protocol, "origin": origin}
        out.add("netd_port_forwards", "gauge", "Published ports and ranges.", count, labels)
    _process(out)
    return out.text()


def _network(out: Exposition, status: NetworkStatus) -> None:
    who = {"id": status.id, "name": status.spec.name or status.id}
    for protocol, count in status.flows.items():
        out.add("netd_flows", "gauge", "Open flows.", count, {**who, "protocol": protocol})
    for name, value in status.counters.items():
        if name in _PLAIN:
            family, text, more = _PLAIN[name]
            out.add(family, "counter", text, value, {**who, **more})
        elif name.startswith("drop_"):
            out.add(_DROPPED[0], "counter", _DROPPED[1], value, {**who, "reason": name.removeprefix("drop_")})
        else:
            out.add(_OTHER[0], "counter", _OTHER[1], value, {**who, "event": name})
    for forward in status.forwards:
        more = {"host_port": str(forward.spec.host_port), "protocol": forward.spec.protocol}
        text = "Connections through a published port now."
        out.add("netd_port_connections", "gauge", text, forward.connections, {**who, **more})


def resident_bytes() -> int:
    """Resident set size of this process (proc(5), statm)."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _process(out: Exposition) -> None:
    times = os.times()
    out.add("process_cpu_seconds_total", "counter", "User and system time.", round(times.user + times.system, 3))
    out.add("process_resident_memory_bytes", "gauge", "Resident set size.", resident_bytes())
    out.add("process_open_fds", "gauge", "Open file descriptors.", len(os.listdir("/proc/self/fd")) - 1)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
