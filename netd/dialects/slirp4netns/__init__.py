"""The command line, texts and api-socket of slirp4netns 1.3, spoken by netd.

Where the real program crashes or stalls, the nearest documented error is given instead. What is different on purpose:

* ``--enable-sandbox`` and ``--enable-seccomp`` are accepted. They confine a process that parses the guest's packets;
  here that process is the daemon, which serves many namespaces and is confined by its service unit. The shim that
  stays parses nothing and waits on one socket.
* ``--enable-sandbox`` is missing from the help text that Podman's probe sees: a Podman that reads it starts the command
  in a private copy of its mount namespace, where a shim that stays would keep every mount of that moment alive.
* ``--target-type=bess`` is refused with one line.
* ``--netns-type=tapfd`` takes an open TAP with a vnet header as well, and makes use of it; the packaged one would not.
* ``--outbound-addr6=IFNAME`` looks up the interface that it names.
* Warnings are printed once, and ``sent tapfd=``/``received tapfd=`` not at all: no such descriptor passes the shim.
"""
