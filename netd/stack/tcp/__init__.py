"""The TCP translator.

Theory of operation
-------------------
The guest across the TAP is a real kernel on this machine, the far side is a socket of the host's kernel. Both have
congestion control, SACK, Nagle and pacing of their own; what lies between them is memory. So this is no third TCP:
it translates a guest's segments into ``send``/``recv`` on a host socket and back, and keeps only what correctness
between two honest kernels (and safety against a dishonest guest) needs.

*Out of the guest.* A SYN asks ``policy`` where it may go and starts a host ``connect``; the SYN-ACK is held until the
host has connected, so that the guest sees the true outcome: connected, refused (RST), unreachable (ICMP). Payload goes
from the frame to ``host.write`` without a copy; what the socket does not take is copied into a bounded overflow. The
window offered is what the overflow can hold, and only what the socket took or the overflow holds is acknowledged. One
ACK per touched connection after each batch of frames.

*Into the guest.* The host socket is read only for as many bytes as the guest's window has room for, so whatever is
read is sent at once, as one super-frame which the kernel cuts into segments. The bytes read are kept until they are
acknowledged; they are the retransmission buffer. There is no unsent data and no second queue.

Kept: retransmission with back-off (RFC 6298; the guest's socket backlog can drop), fast retransmit on three duplicate
ACKs and NewReno-style recovery on partial ACKs (RFC 6582), a second retransmission of the same hole within milliseconds
while duplicate ACKs show it (a lost retransmission must not wait for the time-out), window scale (RFC 7323 §2), MSS,
zero-window probes, FIN in every state and half-close both ways, RST and SYN validation (RFC 5961), a short TIME-WAIT,
keep-alive answers, bounds on flows, half-open flows and memory, with an eviction order.

A small store keeps what comes behind a hole and tells of it in SACK blocks (``ahead``, RFC 2018): without it one lost
frame makes the guest send all that follows again without a round-trip sample, and its time-out doubles with each
further loss (measured: 1 MB at 1 % loss, 19 s instead of 0.03). An ACK that may have been lost itself is repeated
(``repeats``).

The ACK of a small request waits up to ``ack_delay`` for the answer to carry it while guest and host take turns, as most
conversations begin, and that of the guest's FIN for ours: a frame less for each connection (measured, 16 clients of a
published port: 9 % more connections). Both families are the same here; ``headers`` and the key's length know which it
is.

Left out, on purpose: congestion control (memory is the path), SACK from the guest, timestamps and PAWS, Nagle, ECN,
urgent data as such (delivered in line), and the checks of checksums where the device vouches for them.
"""
