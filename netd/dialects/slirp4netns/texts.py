"""What slirp4netns says, to people and to the programs that search its output."""

from __future__ import annotations

from ipaddress import IPv4Network

import netd

COMPATIBLE = "1.3.1"  # the version whose behaviour this is

_HELP = """\
Usage: {argv0} [OPTION]... PID|PATH|FD [TAPNAME]
Give a network namespace a network in user mode. This is netd's slirp4netns.

-c, --configure          set the interface up, with its address and default route
-e, --exit-fd=FD         end when the other end of FD is closed
-r, --ready-fd=FD        write "1" to FD when the network is ready
-m, --mtu=MTU            MTU of the interface (default=1500, max=65521)
-6, --enable-ipv6        offer IPv6 (experimental)
-a, --api-socket=PATH    serve the JSON API for port forwards at PATH
--cidr=CIDR              IPv4 network to use (default=10.0.2.0/24)
--disable-host-loopback  do not lead the gateway's address to 127.0.0.1 of the host
--netns-type=TYPE        what the target is ([path|pid|tapfd], default=pid)
--userns-path=PATH       user namespace that owns the network namespace
{sandbox}\
--enable-seccomp         accepted; see netd's documentation on confinement (experimental)
--outbound-addr=IPv4     source address, or interface, of outgoing connections (experimental)
--outbound-addr6=IPv6    the same for IPv6 (experimental)
--disable-dns            do not answer DNS at network address + 3 (experimental)
--macaddress=MAC         MAC address of the interface (only valid with -c)
--target-type=TYPE       kind of target ([netns], default=netns)
-h, --help               show this help and exit
-v, --version            show version and exit
"""
_SANDBOX = "--enable-sandbox         accepted; see netd's documentation on confinement\n"

_WARNINGS = {
    "enable-ipv6": "Support for IPv6 is experimental",
    "enable-seccomp": "Support for seccomp is experimental",
    "outbound-addr": "Support for --outbound-addr is experimental",
    "outbound-addr6": "Support for --outbound-addr6 is experimental",
    "no-host-loopback": "--no-host-loopback is deprecated and will be removed in future releases, "
    "please use --disable-host-loopback instead.",
    "create-sandbox": "--create-sandbox is deprecated and will be removed in future releases, "
    "please use --enable-sandbox instead.",
    "too-many": "too many arguments",
}


def usage(argv0: str, podman: bool) -> str:
    """The help text. ``podman``: without ``--enable-sandbox`` (see the package's docstring)."""
    return _HELP.format(argv0=argv0, sandbox="" if podman else _SANDBOX)


def version() -> str:
    """Five lines in slirp4netns' form; upstream's tests read SLIRP_CONFIG_VERSION_MAX."""
    return (
        f"slirp4netns version {COMPATIBLE} (netd {netd.__version__})\n"
        f"commit: netd-{netd.__version__}\n"
        "libslirp: none\n"
        "SLIRP_CONFIG_VERSION_MAX: 4\n"
        "libseccomp: none\n"
    )


def warning(key: str) -> str:
    """One line for stdout, or "" where the option called ``key`` needs none."""
    return f"WARNING: {_WARNINGS[key]}\n" if key in _WARNINGS else ""


def started(
    network: IPv4Network, mtu: int, api_socket: str, outbound: str, outbound6: str, mac: str, host_loopback: bool
) -> str:
    """What is printed when the network is up."""
    base = network.network_address
    lines = [
        "Starting slirp",
        f"* MTU:             {mtu}",
        f"* Network:         {base}",
        f"* Netmask:         {network.netmask}",
        f"* Gateway:         {base + 2}",
        f"* DNS:             {base + 3}",
        f"* DHCP begin:      {base + 15}",
        f"* DHCP end:        {base + 30}",
        f"* Recommended IP:  {base + 100}",
    ]
    if api_socket:
        lines.append(f"* API Socket:      {api_socket}")
    if outbound:
        lines.append(f"* Outbound IPv4:    {outbound}")
    if outbound6:
        lines.append(f"* Outbound IPv6:    {outbound6}")
    if mac:
        lines.append(f"* MAC address:     {mac}")
    if host_loopback:
        lines.append(
            f"WARNING: 127.0.0.1:* on the host is accessible as {base + 2} "
            "(set --disable-host-loopback to prohibit connecting to 127.0.0.1:*)"
        )
    return "\n".join(lines) + "\n"
