"""More of a world: IPv6, and a third machine behind a router."""

from __future__ import annotations

import os

from tests.lab import HOST, OUTSIDE, Netns, World

HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"
BEYOND, BEYOND6 = "203.0.113.2", "2001:db8:f::2"  # the router's own addresses there end in 1
MTU = 1300  # of the link there
NO_ROUTE6 = "2001:db8:9::1"  # the host itself has no way there
PROHIBITED6 = "2001:db8:a::1"  # the host's own rules say no
UNREACHABLE6 = "2001:db8:f:1::1"  # the router has no way there

LINKS = {
    "host": f"""
address add {HOST6}/64 dev out0 nodad
route add 2001:db8:f::/48 via {OUTSIDE6}
route add prohibit 2001:db8:a::/48
""",
    "outside": f"""
address add {OUTSIDE6}/64 dev in0 nodad
link add far0 type veth peer name near0 netns {{far}}
link set far0 up mtu {MTU}
address add 203.0.113.1/24 dev far0
address add 2001:db8:f::1/64 dev far0 nodad
route add default via {HOST}
""",
    "far": f"""
link set lo up
link set near0 up mtu {MTU}
address add {BEYOND}/24 dev near0
address add {BEYOND6}/64 dev near0 nodad
route add default via 203.0.113.1
route add default via 2001:db8:f::1
""",
}
ROUTER = {4: OUTSIDE, 6: OUTSIDE6}


class Beyond:
    """Its machines."""

    def __init__(self, world: World, far: Netns) -> None:
        self.world = world
        self.host, self.outside, self.far = world.host, world.outside, far

    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.far.fd}"
