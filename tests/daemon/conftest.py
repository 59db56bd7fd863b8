"""What the tests of this room stand on."""

from __future__ import annotations

import pytest
import uvloop

from tests.stage import attach, daemon, settings, world

from .restarts import manager, start

__all__ = ["attach", "daemon", "manager", "settings", "start", "world"]


@pytest.hookimpl(optionalhook=True)  # pytest-asyncio before 1.4 has it not, and runs on asyncio
def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}
