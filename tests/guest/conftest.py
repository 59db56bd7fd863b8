"""The real kernel as guest."""

from __future__ import annotations

import pytest
import uvloop

from tests.relay.conftest import beyond
from tests.stage import attach, daemon, settings, world

__all__ = ["attach", "beyond", "daemon", "settings", "world"]


@pytest.hookimpl(optionalhook=True)  # pytest-asyncio before 1.4 has it not, and runs on asyncio
def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, object]:
    return {"uvloop": uvloop.new_event_loop}
