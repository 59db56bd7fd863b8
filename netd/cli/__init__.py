"""The ``netd`` command: podman's grammar in front of the API. Nothing but the standard library, imported late."""

from netd.cli.command import main

__all__ = ["main"]
