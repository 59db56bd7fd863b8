"""A TAP that loses frames in both directions, as one whose queue overflows does: slower, but whole, and no stall."""

from __future__ import annotations

import pytest

from netd.settings import Settings
from netd.specs import ForwardSpec
from tests.lab import HOST, OUTSIDE, World, both_ways, connected
from tests.stage import Attach


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    return settings.model_copy(update={"offload": request.param})


@pytest.mark.parametrize("percent", [1, 5])
@pytest.mark.parametrize("way", ["out", "in"])
async def test_loss(world: World, attach: Attach, settings: Settings, percent: int, way: str) -> None:
    guest = await attach(mtu=1500)
    port = guest.network.add_forward(ForwardSpec("tcp", 0, 80), "api").spec.host_port
    guest.lose(percent)
    for _ in range(3):
        if way == "out":
            with world.outside.listener(OUTSIDE) as listener, guest.socket() as client:
                with await connected(client, listener.getsockname(), listener) as server:
                    await both_ways(client, server, 1 << 20)
        else:
            with guest.listener(port=80) as listener, world.outside.socket() as client:
                with await connected(client, (HOST, port), listener) as server:
                    await both_ways(client, server, 1 << 20)
