"""Bytes to numbers and back. ``struct`` only: no state, no clock, no logging, nothing else of netd.

Decoders take a buffer and an offset and raise nothing but ``struct.error``; the stack checks lengths first.
"""
