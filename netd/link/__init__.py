"""Frames to and from a file descriptor. Knows no protocol above Ethernet."""
