"""The command line and texts of pasta(1) as of October 2026, spoken by netd.

What is different on purpose, in what is read here:

* What is for passt only is refused with pasta's words for such options; that includes ``--fd``, ``--vhost-user`` and
  ``--print-capabilities``, which pasta lets pass.
* ``--no-tcp`` and ``--no-udp`` leave that protocol's ports at ``none``; pasta's own default is ``auto``, which it then
  refuses.
* Every address of ``--dns-forward`` counts, not only the last one of its family.
* ``-S "a b"`` is two domains, as pasta(1) says, and names that DNS cannot carry (RFC 1035, 2.3.4) are refused.
* An interface name that the kernel would refuse (``-I``, ``%NAME/``) is refused at once.
* A command dies with the process that started it; pasta leaves it as an orphan without a network.
* ``--splice-only`` makes an interface all the same, and leaves it down: a network of netd's has one.
"""
