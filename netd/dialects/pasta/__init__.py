"""The command line, texts and behaviour of pasta and, with ``-c``, of its ports that pesto edits, spoken by netd."""
