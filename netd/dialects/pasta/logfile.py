"""The file of ``--log-file``: bounded by ``--log-size``, and the latest lines are in it (pasta(1)).

Its first line says who writes, as ``pasta VERSION: EXECUTABLE (PID)``. The others are ``SECONDS: LEVEL: TEXT``, with
the time since the file was opened. When it is full, about 30 % are cut out of it behind the first line.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Callable
from time import monotonic

SIZE_MIN = 40960  # bytes
SIZE_DEFAULT = 1 << 20
CUT = 0.3  # of the bound
LEVELS = {"error": "ERROR:", "warning": "WARNING:", "info": "info:", "debug": "", "trace": ""}

_WIDTH = 9  # of a level in a line
_COLLAPSE_RANGE = 0x08  # linux/falloc.h: takes whole blocks out of a file; Linux 3.15, ext4 and XFS
_CHUNK = 1 << 16
_LONGEST = SIZE_MIN // 10  # bytes of the header, and of a line
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate


class LogFile:
    """Owns ``fd``, a file open for reading and writing; ``header`` is its first line, without the newline.

    A file that has that line is gone on with. It never has more than ``size`` bytes, or SIZE_MIN if that is more. What
    is no file, but a pipe or a terminal, is written to without a bound. No error is raised: ``lost`` counts the lines
    that could not be written.
    """

    def __init__(self, fd: int, header: str, size: int = SIZE_DEFAULT, clock: Callable[[], float] = monotonic) -> None:
        self.lost = 0
        self._fd = fd
        self._bound = max(size, SIZE_MIN)
        self._clock = clock
        self._start = clock()
        self._header = _encoded(header)[: _LONGEST - 1]
        self._collapses = True  # until the file system says that it does not
        self._file = False
        begun = b""
        try:
            self._file = stat.S_ISREG(os.fstat(fd).st_mode)
            if self._file:  # at the end of a file that is open for appending, pwrite(2) would not go where it is told
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_APPEND)
                begun = os.pread(fd, len(self._header), 0)
        except OSError:
            pass
        if not begun or begun != self._header:
            self._write(self._header + b"\n")

    def line(self, level: str, text: str) -> None:
        """Add ``text`` under ``level``, one of LEVELS. Each line of it becomes one; a long one is cut."""
        stamp = f"{self._clock() - self._start:.4f}: {LEVELS.get(level, level):<{_WIDTH}}"
        for part in text.splitlines() or [""]:
            self._write(_encoded(stamp + part)[: _LONGEST - 1] + b"\n")

    def close(self) -> None:
        """Close the file. Lines that come later are lost."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        try:
            if not self._file:
                written = os.write(self._fd, data)
            else:
                at = os.lseek(self._fd, 0, os.SEEK_END)
                if at + len(data) > self._bound:
                    at = self._cut(at, self._bound - len(data))
                written = os.pwrite(self._fd, data, at)
                if written != len(data):
                    os.ftruncate(self._fd, at)  # the disk is full: rather no line than half of one
            self.lost += written != len(data)
        except OSError:
            self.lost += 1

    # --- when it is full ---------------------------------------------------------------------------------------------

    def _cut(self, size: int, allowed: int) -> int:
        """Take at least CUT out of the file, and as much as it takes for ``allowed`` bytes. Its new size."""
        excess = max(size - allowed, int(self._bound * CUT))
        if self._collapses and self._collapse(size, excess):
            return os.lseek(self._fd, 0, os.SEEK_END)
        return self._copy(size, excess)

    def _collapse(self, size: int, excess: int) -> bool:
        """Have the file system take whole blocks out; what is left of the line at the cut becomes the header's."""
        length = excess + -excess % os.fstat(self._fd).st_blksize
        end = os.pread(self._fd, _CHUNK, length).find(b"\n", len(self._header))
        if length >= size or end < 0:  # or lines that are not ours
            return False
        if _fallocate(self._fd, _COLLAPSE_RANGE, ctypes.c_int64(0), ctypes.c_int64(length)) != 0:
            self._collapses = False
            return False
        os.pwrite(self._fd, self._header.ljust(end), 0)
        return True

    def _copy(self, size: int, excess: int) -> int:
        """Write what is kept behind the header again, and shorten the file."""
        first = self._header + b"\n"
        source = min(len(first) + excess, size)
        end = os.pread(self._fd, _CHUNK, source).find(b"\n")
        source = source + end + 1 if end >= 0 else size
        os.pwrite(self._fd, first, 0)
        target = len(first)
        while source < size and (part := os.pread(self._fd, _CHUNK, source)):
            os.pwrite(self._fd, part, target)
            source += len(part)
            target += len(part)
        os.ftruncate(self._fd, target)
        return target


def _encoded(text: str) -> bytes:
    return text.replace("\n", " ").encode("utf-8", "backslashreplace")
