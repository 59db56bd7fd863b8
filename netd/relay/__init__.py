"""Flows to and from host sockets, on the event loop. The stack's ``ports`` are fulfilled here.

host        the one object the stack sees; streams, datagrams, echo, the resolver behind it
stream      one TCP socket of the host for one connection of the guest
datagram    one UDP socket for one guest endpoint
echo        unprivileged ping sockets
forwards    published ports: listeners that open flows towards the guest
resolver    the host's name servers: /etc/resolv.conf, failover
"""
