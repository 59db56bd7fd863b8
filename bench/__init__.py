"""Side-by-side benchmark of netd, slirp4netns and pasta (``run.py``), and a profile of netd (``profile.py``)."""
