"""What pasta says, to people and to the programs that search its output."""

from __future__ import annotations

from collections.abc import Iterable

import netd
from netd.specs import PortRule

COMPATIBLE = "2026_10_02"  # the version whose behaviour this is; some callers compare it with the date they need

_HELP = """\
Usage: {argv0} [OPTION]... [COMMAND [ARG]...]
       {argv0} [OPTION]... PID
       {argv0} [OPTION]... --netns PATH|NAME
Give a network namespace the host's own network in user mode. This is netd's pasta.
With neither PID nor --netns, run COMMAND, or a shell, in new namespaces.

The call itself:
  -f, --foreground         stay until the network ends
  -q, --quiet              say nothing but warnings and errors
  -d, --debug              say more
  --trace                  say as much as there is
  --stats SECONDS          with -f before it, print counters, at most that often
  -l, --log-file PATH      write what is said to PATH
  --log-size BYTES         how large that file may grow (default 1048576, at least 40960)
  -P, --pid FILE           write the process id to FILE
  -p, --pcap FILE          record the namespace's frames in FILE
  -c, --conf-path PATH     let pesto change the ports, at the socket PATH
  --runas USER[:GROUP]     user to change to, in names or numbers
  --chroot-fallback        accepted; netd does not change its root directory
  -e, --stderr             accepted, does nothing
  -h, --help               show this help and exit
  --version                show version and exit

The namespaces:
  --netns PATH|NAME        network namespace to join, NAME is one of ip-netns(8)
  --userns PATH            user namespace to join before it
  --netns-only             join no user namespace, and make none
  --no-netns-quit          stay when the namespace's path goes away
  --no-pidns               a command keeps its caller's process ids

The namespace's interface:
  -I, --ns-ifname NAME     its name (default: that of the host's)
  --ns-mac-addr ADDR       its MAC address (default: random)
  -m, --mtu MTU            its MTU, 0 to leave it alone (default 65520)
  --config-net             set it up, with addresses and routes
  -i, --interface NAME     the host's interface to be like
  -a, --address ADDR[/LEN] its address, one of each family (default: the host's)
  -n, --netmask MASK       its IPv4 netmask, dotted or in bits
  -g, --gateway ADDR       its gateway, one of each family (default: the host's)
  -M, --mac-addr ADDR      the gateway's MAC address (default 9a:55:9a:55:9a:55)
  --no-copy-routes         with --config-net, a default route instead of the host's routes
  --no-copy-addrs          with --config-net, one address instead of all the host's
  -4, --ipv4-only          no IPv6
  -6, --ipv6-only          no IPv4

What it is told:
  -D, --dns ADDR           name server, or "none" (default: the host's)
  -S, --search DOMAIN      domain to search, or "none" (default: the host's)
  --dhcp-dns               tell the name servers
  --dhcp-search            tell the domains
  -H, --hostname NAME      host name
  --fqdn NAME              full host name
  --no-tcp, --no-udp, --no-icmp, --no-dhcp, --no-dhcpv6, --no-ndp, --no-ra
                           leave that protocol out

Ways to the host:
  --map-host-loopback ADDR lead ADDR to the host's loopback, or "none" (default: the gateway)
  --no-map-gw              do not lead the gateway there
  --map-guest-addr ADDR    lead ADDR to the host's own address, or "none" (default)
  --dns-forward ADDR       lead DNS queries to ADDR to the host's name server
  --dns-host ADDR          that name server (default: the first of /etc/resolv.conf)
  -o, --outbound ADDR      source address of the host's sockets, one of each family
  --outbound-if4 NAME      interface of the host's IPv4 sockets
  --outbound-if6 NAME      interface of the host's IPv6 sockets

Ports:
  -t, --tcp-ports SPEC     TCP ports of the host that lead to the namespace
  -u, --udp-ports SPEC     UDP ports likewise
  -T, --tcp-ns SPEC        TCP ports of the namespace's loopback that lead to the host's
  -U, --udp-ns SPEC        UDP ports likewise
  --freebind               listen on addresses that are not there yet, too
  --host-lo-to-ns-lo       what comes to the host's loopback goes to the namespace's
  --no-splice              lead what comes to the host's loopback through the interface
  --splice-only            make no interface, only lead ports from loopback to loopback

{specs}
Default for all four is auto.
"""

SPECS = """\
SPEC is "none", or [ADDR][%IFNAME]/ (not for -T and -U) and a list with commas of
  PORT[-PORT]              these ports
  ...:PORT[-PORT]          these, to others
  ...:[ADDR/]PORT[-PORT]   to others at ADDR
  ...:ADDR                 to the same ports at ADDR
  ~PORT[-PORT]             not these
  all[:ADDR]               every port that is not ephemeral, as far as it is free
  auto                     only while somebody listens where it leads
as in 8080:80, 127.0.0.1/5000-5010:6000-6010, %eth0/22, ~25, 8000-8010,auto.
"""

COULD_NOT_LISTEN = "Couldn't listen on requested ports\n"  # the end, after one or more of the two below


def usage(argv0: str) -> str:
    """The help text, which ``--help`` prints to stdout and a mistake to stderr."""
    return _HELP.format(argv0=argv0, specs=SPECS)


def version(name: str = "pasta") -> str:
    """First ``pasta DATE.BUILD`` like upstream's, then whose it is. pesto's differs in its name."""
    return (
        f"{name} {COMPATIBLE}.netd-{netd.__version__}\n"
        f"netd {netd.__version__}, a replacement for {name}; it has no code of it\n"
        "Apache License 2.0 <https://www.apache.org/licenses/LICENSE-2.0>\n"
        "There is NO WARRANTY, to the extent permitted by law.\n"
    )


def listen_failed(rule: PortRule, port: int, reason: str) -> str:
    """One port of ``rule`` that cannot be had; ``reason`` is strerror(3)'s. Podman's tests search both."""
    return f"Listen failed for {_listener(rule)} port {_where(rule)}/{port}: {reason}\n"


def all_listens_failed(rule: PortRule) -> str:
    """Not one port of a best-effort rule can be had."""
    return f"All listens failed for {_listener(rule)} {_where(rule)}/{rule.first}-{rule.last}\n"


def rules(table: Iterable[PortRule]) -> str:
    """A table's rules, one a line."""
    return "".join(f"    {rule}\n" for rule in table)


def _listener(rule: PortRule) -> str:
    return f"{'SPLICE' if rule.interface == 'lo' else 'HOST'} {rule.protocol.upper()}"


def _where(rule: PortRule) -> str:
    return (rule.address or "*") + (f"%{rule.interface}" if rule.interface else "")
