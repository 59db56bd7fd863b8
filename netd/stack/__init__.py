"""State, no I/O: frames of one guest in, decisions and frames out. ``now`` (monotonic seconds) is an argument.

interface   the one door: a frame from the guest, the end of a batch, a timer
arp ipv4    the layers a frame passes; neighbor and addressing are what they know
icmp udp    the gateway's own answers, errors; datagram flows
tcp/        the TCP translator
policy      where a new flow may go: a pure function
ports       what the stack needs of the host side (sockets live in relay/)
"""
