"""netd: the network of rootless containers, as one per-user service. The map of the house is docs/ARCHITECTURE.md."""

__version__ = "0.1.0"
