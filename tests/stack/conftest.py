"""Every test ends with the network detached and everything counted back to nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .guest import Guest
from .world import World


@pytest.fixture
def world() -> Iterator[World]:
    """An interface with offload at MTU 1500. What the stack said and no test saw is a failure."""
    world = World()
    yield world
    assert not world.sent, [sent.frame.hex() for sent in world.sent]
    world.ends()


@pytest.fixture
def guest(world: World) -> Guest:
    return Guest(world)


@pytest.fixture
def plain() -> Iterator[Guest]:
    """A guest behind a link without offload: checksums in software, no super-frames."""
    world = World(offload=False)
    yield Guest(world)
    assert not world.sent, [sent.frame.hex() for sent in world.sent]
    world.ends()
