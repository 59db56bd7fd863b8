"""rtnetlink's messages as pyroute2 spells them. pyroute2's one door; the agent imports it, nothing in the daemon does.

Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_addr}.h.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
import types
from typing import Any

IFF_UP = 0x1  # linux/if.h
# linux/rtnetlink.h
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 254, 4, 1
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTNH_F_ONLINK = 0x4


def import_messages() -> tuple[Any, Any, Any]:
    """pyroute2's three message classes: link, address, route.

    pyroute2/__init__.py imports all of the library (asyncio, NDB, …): 20 MB and 110 ms which three classes do not
    need. An empty package object of that name and path lets their modules be imported alone (0.7.12 to 0.9.7).
    """
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("pyroute2 is not installed")
    bare = types.ModuleType("pyroute2")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["pyroute2"] = bare
    try:
        return _messages()
    except (ImportError, AttributeError):  # a release that is laid out otherwise: import it the plain way
        for name in [name for name in sys.modules if name.split(".")[0] == "pyroute2"]:
            del sys.modules[name]
        return _messages()


def _messages() -> tuple[Any, Any, Any]:
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    return ifinfmsg, ifaddrmsg, rtmsg


ifinfmsg, ifaddrmsg, rtmsg = import_messages()


def link(index: int, *attributes: tuple[str, Any], up: bool = False) -> Any:
    """Interface ``index``, to get these attributes."""
    message = ifinfmsg()
    message["index"] = index
    if up:
        message["flags"] = message["change"] = IFF_UP
    message["attrs"] = list(attributes)
    return message


def address(index: int, packed: bytes, prefix: int, *attributes: tuple[str, Any], flags: int = 0) -> Any:
    """An address of interface ``index``."""
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    message["prefixlen"], message["index"], message["flags"] = prefix, index, flags
    message["scope"] = RT_SCOPE_UNIVERSE
    literal = socket.inet_ntop(message["family"], packed)
    message["attrs"] = [("IFA_LOCAL", literal), ("IFA_ADDRESS", literal), *attributes]
    return message


def route(index: int, packed: bytes, prefix: int, gateway: str, metric: int | None, onlink: bool = False) -> Any:
    """A unicast route of the main table by interface ``index``; no ``gateway`` ("") is on the link itself."""
    message = rtmsg()
    message["family"] = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    message["dst_len"] = prefix
    message["table"], message["proto"], message["type"] = RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST
    message["scope"] = RT_SCOPE_UNIVERSE if gateway else RT_SCOPE_LINK
    message["flags"] = RTNH_F_ONLINK if onlink else 0
    message["attrs"] = [("RTA_OIF", index)]
    if prefix:
        message["attrs"].append(("RTA_DST", socket.inet_ntop(message["family"], packed)))
    if gateway:
        message["attrs"].append(("RTA_GATEWAY", gateway))
    if metric is not None:
        message["attrs"].append(("RTA_PRIORITY", metric))
    return message


def any_route(index: int, packed: bytes, prefix: int, metric: int) -> Any:
    """For RTM_DELROUTE: the first such route of the main table, whoever made it, with all its hops."""
    message = route(index, packed, prefix, "", metric)
    message["proto"] = message["type"] = 0
    message["scope"] = RT_SCOPE_NOWHERE
    return message
