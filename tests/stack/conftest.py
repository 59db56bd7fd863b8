"""Every test ends with the network detached and everything counted back to nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .guest import Guest
from .world import World


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every script is played in both families; those marked ``ipv4`` or ``ipv6`` in that one."""
    if "family" in metafunc.fixturenames and not any(
        "family" in marker.args[0] for marker in metafunc.definition.iter_markers("parametrize")
    ):
        only4, only6 = (metafunc.definition.get_closest_marker(name) for name in ("ipv4", "ipv6"))
        metafunc.parametrize("family", [4] if only4 else [6] if only6 else [4, 6], ids="ipv{}".format)


@pytest.fixture
def world(family: int) -> Iterator[World]:
    """An interface with offload at MTU 1500. What the stack said and no test saw is a failure."""
    world = World(family=family)
    yield world
    assert not world.sent, [sent.frame.hex() for sent in world.sent]
    world.ends()


@pytest.fixture
def guest(world: World) -> Guest:
    return Guest(world)


@pytest.fixture
def plain(family: int) -> Iterator[Guest]:
    """A guest behind a link without offload: checksums in software, no super-frames."""
    world = World(offload=False, family=family)
    yield Guest(world)
    assert not world.sent, [sent.frame.hex() for sent in world.sent]
    world.ends()
