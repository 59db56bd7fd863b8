"""Flows to and from host sockets, on the event loop. The stack's ``ports`` are fulfilled here.

host          the one object the stack sees; streams, datagrams, echo, the resolver behind it
stream        one TCP socket of the host for one connection of the guest
udp_socket    what the two UDP sockets have in common: sending and errors
datagram      one for one guest endpoint
udp_listener  one for a published port
outbox        datagrams gathered for one system call
echo          unprivileged ping sockets
forwards      published ports: listeners that open flows towards the guest
listeners     their sockets: bound in both families, given back
resolver      the host's name servers: /etc/resolv.conf, failover
errqueue      the kernel's word on a datagram's fate, as an ICMP error
hops          TTL and TOS
source        the addresses and interfaces that sockets outwards are bound to
splice        two TCP sockets joined, past the stack; udp_relay the same for UDP
outward       listeners on the guest's loopback that lead to the host's
inward        from the host's loopback to the guest's
sockdiag      who listens in a namespace
autoports     ports that are published while somebody listens
sockaddr      packed addresses and sockets' addresses
"""
