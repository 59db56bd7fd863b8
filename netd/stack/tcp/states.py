"""The states of a connection as small integers, and what a FIN does to them (RFC 9293 §3.3.2)."""

from typing import Final

CONNECTING: Final = 0  # the guest's SYN is held until the host has connected
SYN_SENT: Final = 1
SYN_RECEIVED: Final = 2
ESTABLISHED: Final = 3
FIN_WAIT_1: Final = 4
FIN_WAIT_2: Final = 5
CLOSE_WAIT: Final = 6
CLOSING: Final = 7
LAST_ACK: Final = 8
TIME_WAIT: Final = 9
CLOSED: Final = 10

STATES: Final = (
    "connecting",
    "syn_sent",
    "syn_received",
    "established",
    "fin_wait_1",
    "fin_wait_2",
    "close_wait",
    "closing",
    "last_ack",
    "time_wait",
    "closed",
)

# RFC 9293 §3.6, figure 5: what a FIN does in each state it is legal in.
FIN_TO_GUEST: Final = {ESTABLISHED: FIN_WAIT_1, CLOSE_WAIT: LAST_ACK}
FIN_ACKNOWLEDGED: Final = {FIN_WAIT_1: FIN_WAIT_2, CLOSING: TIME_WAIT, LAST_ACK: CLOSED}
FIN_FROM_GUEST: Final = {ESTABLISHED: CLOSE_WAIT, FIN_WAIT_1: CLOSING, FIN_WAIT_2: TIME_WAIT}
RECEIVING: Final = frozenset((ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2))
