"""The command line and texts of pesto(1) as of October 2026, spoken by netd.

What is different on purpose:

* ``--add`` of a rule that was there before the call succeeds, as Podman 6 expects; pasta's own calls it a conflict.
* All of the command line is read before the socket is connected to.
* What a deletion frees can be added to in the same call; pasta's own refuses every addition after a deletion.
"""
