"""What pasta writes while its network lives: the log of ``--log-file``, and the table of ``--stats``.

Both go to descriptors of the network's, so a restart of the daemon goes on with them.
"""

from __future__ import annotations

import asyncio
import os
import select
from asyncio import TimerHandle
from typing import TYPE_CHECKING

from netd.dialects.pasta.logfile import LogFile

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

LOG, STATS = "pasta_log", "pasta_stats"  # keys of Network.held
LEVELS = ("error", "warning", "info", "debug", "trace")
_PIPE_BUF = 4096  # bytes that a pipe takes at once where it takes any (pipe(7))


class Reports:
    """Serves every network that has a log or wants statistics, also those that were restored."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._logs: dict[str, _Log] = {}
        self._stats: dict[str, _Stats] = {}

    async def start(self) -> None:
        """Begin with the networks that are there, and go on with each that comes."""
        self._daemon.observers.append(self._observe)
        for network in list(self._daemon.networks.values()):
            self._observe("attached", network)

    async def stop(self) -> None:
        """Let go of the files; they stay with their networks."""
        if self._observe in self._daemon.observers:
            self._daemon.observers.remove(self._observe)
        for log in self._logs.values():
            log.close()
        for stats in self._stats.values():
            stats.close()
        self._logs.clear()
        self._stats.clear()

    def _observe(self, event: str, network: Network) -> None:
        if event == "attached":
            if LOG in network.held and network.id not in self._logs:
                self._logs[network.id] = _Log(network)
            if STATS in network.held and network.id not in self._stats:
                self._stats[network.id] = _Stats(network)
        elif event == "detached":
            if (log := self._logs.pop(network.id, None)) is not None:
                log.file.line("info", "the network has ended")
                log.close()
            if (stats := self._stats.pop(network.id, None)) is not None:
                stats.close()


class _Log:
    """One network's."""

    def __init__(self, network: Network) -> None:
        told = network.spec.dialect
        fd = os.dup(network.held[LOG])
        resumed = os.fstat(fd).st_size > 0
        self.file = LogFile(fd, str(told["log_header"]), int(told["log_size"]))
        level = str(told["log_level"])
        if not resumed and LEVELS.index(level) >= LEVELS.index("info"):
            for line in outline(network):
                self.file.line("info", line)
        if network.spec.trace:
            network.on_trace = lambda line: self.file.line("trace", line)

    def close(self) -> None:
        self.file.close()


def outline(network: Network) -> list[str]:
    """What the network is, in a few lines."""
    spec = network.spec
    lines = [f"interface {spec.ifname}, MTU {spec.mtu}, MAC {network.tap.mac}"]
    for family, address, gateway, dns, loopback in (
        ("IPv4", spec.guest_ip, spec.gateway_ip, spec.dns_ip, spec.host_loopback_ip),
        ("IPv6", spec.guest_ip6, spec.gateway_ip6, spec.dns_ip6, spec.host_loopback_ip6),
    ):
        if gateway:
            lines.append(f"{family}: address {address or 'link-local'}, gateway {gateway}")
            lines += [f"  DNS is answered at {dns}"] if dns else []
            lines += [f"  {loopback} is the host's loopback"] if loopback else []
    lines += [f"{ip} is the host's own address" for ip in spec.host_ips]
    return lines


class _Stats:
    """Counters that have changed, every so many seconds, as long as whoever reads them keeps up."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._fd = os.dup(network.held[STATS])
        self._seconds = int(network.spec.dialect["stats"])
        self._before: dict[str, int] = {}
        self._timer: TimerHandle | None = None
        self._again()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._tell)

    def _tell(self) -> None:
        counters = self._network.status().counters
        changed = {name: value for name, value in counters.items() if value and value != self._before.get(name)}
        if changed and _takes(self._fd):
            text = "".join(f"{value:>14}  {name}\n" for name, value in changed.items())
            try:
                os.write(self._fd, text.encode()[:_PIPE_BUF])
            except OSError:
                return  # nobody reads them any more
            self._before = counters
        self._again()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        os.close(self._fd)


def _takes(fd: int) -> bool:
    """Whether a write would not block: the descriptor is the caller's, and blocking."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))
