"""How targets are run: a few hundred examples, the same each time; or FUZZ_SECONDS of new ones each (``make fuzz``)."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis.strategies import SearchStrategy
from wire.prop import LONG, quick, slow

Target = Callable[..., None]


def hunt(*strategies: SearchStrategy[Any], heavy: bool = False) -> Callable[[Target], Callable[[], None]]:
    """Make a test of ``target``; ``heavy``: fewer examples in the short run."""

    def decorate(target: Target) -> Callable[[], None]:
        once = (slow if heavy else quick)(given(*strategies)(target))

        @pytest.mark.timeout(LONG + 300)
        def test() -> None:
            once()
            end = monotonic() + LONG
            while monotonic() < end:
                once()

        test.__doc__ = target.__doc__
        return test

    return decorate
