"""How hard properties look: the same examples in every run, unless FUZZ_SECONDS asks for new ones (tests/fuzz)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

LONG = float(os.environ.get("FUZZ_SECONDS", "0"))

_COMMON = settings(
    deadline=None,
    database=None,
    derandomize=not LONG,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
quick = settings(_COMMON, max_examples=200)
slow = settings(_COMMON, max_examples=40, phases=(Phase.explicit, Phase.generate))  # a seed does not shrink
