"""The states of a connection as small integers, and what a FIN does to them (RFC 9293 §3.3.2)."""

CONNECTING = 0  # the guest's SYN is held until the host has connected
SYN_SENT = 1
SYN_RECEIVED = 2
ESTABLISHED = 3
FIN_WAIT_1 = 4
FIN_WAIT_2 = 5
CLOSE_WAIT = 6
CLOSING = 7
LAST_ACK = 8
TIME_WAIT = 9
CLOSED = 10

STATES = (
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
FIN_TO_GUEST = {ESTABLISHED: FIN_WAIT_1, CLOSE_WAIT: LAST_ACK}
FIN_ACKNOWLEDGED = {FIN_WAIT_1: FIN_WAIT_2, CLOSING: TIME_WAIT, LAST_ACK: CLOSED}
FIN_FROM_GUEST = {ESTABLISHED: CLOSE_WAIT, FIN_WAIT_1: CLOSING, FIN_WAIT_2: TIME_WAIT}
RECEIVING = frozenset((ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2))
