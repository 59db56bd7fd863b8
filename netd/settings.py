"""netd.toml and the environment as one frozen Settings. Inner rooms get plain values, not this.

The file is ``$XDG_CONFIG_HOME/netd/netd.toml`` (or ``NETD_CONFIG``); each key may be overridden by ``NETD_<KEY>``.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from netd.errors import InvalidSpec


def default_runtime_dir() -> Path:
    """``$XDG_RUNTIME_DIR/netd``, ``/run/netd`` for root without one, else ``/run/user/UID/netd``."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "netd"
    return Path("/run/netd") if os.getuid() == 0 else Path(f"/run/user/{os.getuid()}/netd")


class Settings(BaseModel):
    """What the owner may choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime_dir: Path = Field(default_factory=default_runtime_dir)
    resolv_conf: Path = Path("/etc/resolv.conf")
    offload: bool = True  # ask the kernel for TSO and checksum offload on the TAP
    max_networks: int = Field(default=1024, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    on_unavailable: Literal["fail", "exec-real"] = "fail"  # read by the shim itself


def config_path() -> Path:
    """Where the file is looked for."""
    override = os.environ.get("NETD_CONFIG")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "netd" / "netd.toml"


def load(**overrides: Any) -> Settings:
    """File, then environment, then ``overrides``. InvalidSpec names the file and the key."""
    path = config_path()
    values: dict[str, Any] = {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InvalidSpec(f"{path}: {e}") from None
    for key in Settings.model_fields:
        value = os.environ.get(f"NETD_{key.upper()}")
        if value:
            values[key] = value
    values.update({key: value for key, value in overrides.items() if value is not None})
    try:
        return Settings.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidSpec(f"{path} (or NETD_{where.upper()}): {where}: {first['msg']}") from None
