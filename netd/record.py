"""A small record in a memory file that outlives its writer in the service manager's store.

Two slots, written in turn, each with a sequence number and a CRC: a writer killed half way leaves the other one whole.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterable
from struct import Struct
from typing import Any

_HEADER = Struct("=8sQQI")  # magic sequence length crc32
_MAGIC = b"netdrec1"
_SLOT = 64 << 20  # address space, not memory: the file is sparse
FORMAT = 1


class Record:
    """The record in ``fd`` (a memfd, owned)."""

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd if fd >= 0 else os.memfd_create("netd-state", os.MFD_CLOEXEC)
        self._sequence = 0

    def write(self, content: dict[str, Any], **lists: Iterable[str]) -> None:
        """Replace the content. ``lists``: further members, arrays of JSON texts that their owner keeps ready.

        OSError; EFBIG where it would not fit, the last one stays then.
        """
        text = json.dumps({"format": FORMAT, **content}, separators=(",", ":"))
        for name, texts in lists.items():
            text = f'{text[:-1]},"{name}":[{",".join(texts)}]}}'
        body = text.encode()
        if _HEADER.size + len(body) > _SLOT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._sequence += 1
        at = (self._sequence & 1) * _SLOT
        os.pwrite(self.fd, body, at + _HEADER.size)
        os.pwrite(self.fd, _HEADER.pack(_MAGIC, self._sequence, len(body), zlib.crc32(body)), at)

    def read(self) -> dict[str, Any] | None:
        """The newest whole content; None if there is none, or if it is of a format that is not ours."""
        best: dict[str, Any] | None = None
        for slot in (0, 1):
            try:
                header = os.pread(self.fd, _HEADER.size, slot * _SLOT)
                if len(header) < _HEADER.size:
                    continue
                magic, sequence, length, crc = _HEADER.unpack(header)
                if magic != _MAGIC or length > _SLOT or sequence <= self._sequence:
                    continue
                body = os.pread(self.fd, length, slot * _SLOT + _HEADER.size)
                if zlib.crc32(body) != crc:
                    continue
                content = json.loads(body)
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                best, self._sequence = content, sequence
        return best if best is not None and best.get("format") == FORMAT else None
