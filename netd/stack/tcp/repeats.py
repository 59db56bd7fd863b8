"""The last acknowledgment before a silence, once more.

Where frames get lost, acknowledgments get lost, too. The guest's kernel then waits for its own time-out: on Linux 200
ms and twice as long each further time, for what it sent again gives it no round-trip sample (Karn's algorithm). All
that it lacks is known here. So for a while after a hole was seen, an ACK that nothing has followed for some
milliseconds is sent again, once. A duplicate that tells nothing new moves nobody: RFC 5681 §3.2 wants three. What RFC
5681 §4.2 forbids is a second *immediate* ACK.

Measured (bench/soak.py, 200 MB out at MTU 1500, 5 % of the frames lost each way): the guest's time-outs 76 → 18-46, its
loss probes 252 → 31-63, the whole 22 s → 6-8 s (23 s in one of three runs). RFC 7323 timestamps were weighed against
it: between two kernels with the same losses they shortened 12 s to 6-11 s, and would cost each segment 12 bytes and
some time for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netd.stack.tcp.states import RECEIVING
from netd.stack.timers import NEVER

if TYPE_CHECKING:
    from netd.stack.tcp.receiver import Receiver
    from netd.stack.timers import Timers

WATCHED: Final = 64  # ACKs of a connection that are watched after a hole


class Repeats:
    """The watched ACKs of one network; one a connection (``timers.Timed``)."""

    __slots__ = ("_after", "_since", "_timers", "deadline", "hinted")

    def __init__(self, timers: Timers, after: float) -> None:
        """``after``: seconds of silence."""
        self._timers = timers
        self._after = after
        self._since: dict[Receiver, float] = {}  # oldest first
        self.deadline = self.hinted = NEVER

    def watch(self, connection: Receiver, now: float) -> None:
        """``connection`` has sent an ACK."""
        since = self._since
        since.pop(connection, None)
        since[connection] = now
        if self.deadline == NEVER:
            self._timers.arm(self, now + self._after)

    def on_deadline(self, now: float) -> None:
        """Some have been followed by nothing."""
        waiting = self._since
        while waiting:
            connection = next(iter(waiting))
            due = waiting[connection] + self._after
            if due > now:
                self._timers.arm(self, due)
                return
            del waiting[connection]
            if connection.state in RECEIVING:
                connection.table.counters.tcp_acks_repeated += 1
                connection.send_ack(again=True)

    def __len__(self) -> int:
        return len(self._since)
