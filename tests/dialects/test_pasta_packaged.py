"""The packaged pasta as oracle: the same command line, the same exit status and the same words.

Every line ends before a namespace is entered, at the latest for want of the process, so nothing is bound or opened.
``NETD_GENUINE_PASTA`` names another one than /usr/bin/pasta, with words before it if need be (``chroot DIR pasta``).
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess

import pytest

from netd.dialects.outcome import Outcome
from netd.dialects.pasta.grammar import parse
from tests.dialects import test_pasta_grammar as grammar
from tests.dialects import test_pasta_portspec as portspec

PID = "99999999"  # above every pid_max (2^22)
FOUND = shutil.which("pasta", path="/usr/bin:/usr/local/bin:/bin")
GENUINE = shlex.split(os.environ.get("NETD_GENUINE_PASTA", "")) or ([FOUND] if FOUND else [])

# Lines that depend on the machine, not on the command line.
ASIDE = (
    *(
        "Failed to send ",
        "Started as root",
        "Don't run as root",
        "Couldn't get any nameserver",
        "No external interface",
    ),
    *("No IPv4 nameserver", "No IPv6 nameserver", "Multiple ", "No interfaces with", "IPv4: no ext", "IPv6: no ext"),
)

# Understood alike since 2023.
OLD = """
--foo
--foo=1
-Z
-dZ
-V
-v
--config-net=1
--no-d
--tcp 22222
--out
--version=1
--map-gw
-q
-f
-d -f
--no-dhcp
--no-dhcpv
--no-tcp -t none -T none
--no-udp -u none -U none
--no-icmp
--no-ndp
--no-ra
--no-map-gw
--dhcp-dns
--dhcp-search
--config-net
--no-netns-quit
-4
-6
-m 9000
-I tap0
-I ''
-I abcdefghijklmnop
-M 02:00:00:00:00:01
-M x
--ns-mac-addr x
-a 192.0.2.1
-a 2001:db8::5
-n 24
-n 255.255.0.0
-g 192.0.2.1
-g fe80::1
-g x
-g 127.0.0.1
-D x
-D 192.0.2.53
-D none
--dns-forward 192.0.2.53
--dns-forward fe80::53
--dns-forward x
--dns-forward 127.0.0.1
-S none
-S example.org
--log-size x
--log-size 40959
-p ''
-P ''
-t none -u none -T none -U none
-t 22222
-t 22222-22224:22225-22227
-t 127.0.0.1/22222
-t ::1/22222
-t 127.0.0.1%lo/22222
-u 22222
-T 22222
-U 22222
-t auto -u auto -T auto -U auto
-t 22222 --no-icmp -4
--tcp-p 22222
--no-dhcp-dns
--no-dhcp-search
--userns ''
--dns 1.1.1.1 -h
""".strip("\n").splitlines()


def run(words: str) -> tuple[int, str, str]:
    """Exit status, the first word of stdout, and stderr up to the usage."""
    done = subprocess.run(
        [*GENUINE, *shlex.split(words), PID], check=False, env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, errors="surrogateescape", stdin=subprocess.DEVNULL, timeout=30,
    )  # fmt: skip
    said = re.sub(r"^\d+\.\d{4}: ", "", done.stderr, flags=re.MULTILINE)  # with --debug
    said = "".join(line for line in said.splitlines(keepends=True) if not line.startswith(ASIDE))
    return done.returncode, done.stdout.partition(" ")[0], before_usage(said)


def before_usage(text: str) -> str:
    return text.partition("Usage: ")[0]


def ours(words: str) -> tuple[int, str, str]:
    end = parse(GENUINE[-1], [*shlex.split(words), PID], grammar.EPHEMERAL)
    if isinstance(end, Outcome):
        return end.status, end.stdout.partition(" ")[0], before_usage(end.stderr)
    missing = f"Couldn't open user namespace /proc/{PID}/ns/user: No such file or directory\n"
    return 1, "", end.warnings + missing


@functools.cache
def generation() -> int:
    """The year whose options and messages the packaged one has; 0: there is none."""
    if not GENUINE:
        return 0
    known = {2026: "--no-pidns=1", 2025: "--map-guest-addr"}
    return next((year for year, probe in known.items() if "unrecognized" not in run(probe)[2]), 2023)


@pytest.mark.parametrize("words", OLD)
def test_same_as_any(words: str) -> None:
    if not generation():
        pytest.skip("pasta is not installed")
    if generation() < 2025 and ("-h" in words or "--no-d" in words.split()):
        pytest.skip("this pasta exits with 1 after --help")
    assert ours(words) == run(words)


# What is different on purpose (see the package's docstring), or looked up or opened before the process is.
APART = (
    *("-F", "--fd", "--vhost-user", "--print-capabilities", "--repair-path", "--no-tcp", "--no-udp"),
    *(
        "-S",
        "--search",
        "--fqdn",
        "-I",
        "-i",
        "--interface",
        "--userns",
        "--netns-only",
        "-c",
        "--conf-path",
        "--runas",
    ),
    *("-l", "--log-file", "-p", "--pcap", "-P", "--pid"),
)


def lines_of_today() -> list[str]:
    lines = [words for words, _ in grammar.VALID + grammar.INVALID]
    for option in "tuTU":
        others = "".join(f" -{other} none" for other in "tuTU" if other != option)
        lines += [f"-{option} {shlex.quote(text)}{others}" for text, _ in portspec.VALID]
    wrong = [
        *portspec.INVALID,
        *(text for text, _ in portspec.INVALID_LISTENING),
        *(text for text, *_ in portspec.REFUSED),
    ]
    for text in wrong:
        # of "22:ADDRESS" and more, pasta has added the rule before it reads on
        if not re.match("22:[0-9:[].*[.:]|0x", text):
            lines += [f"-{option} {shlex.quote(text)}" for option in "tU"]
    lines += [f"-t {shlex.quote(there)} -t {shlex.quote(added)}" for there, added in portspec.CONFLICTS]
    return [line for line in dict.fromkeys(lines) if not any(word.startswith(APART) for word in shlex.split(line))]


@pytest.mark.timeout(300)
def test_same_as_todays() -> None:
    """All the tables of the grammar's and the port specifications' tests."""
    if generation() < 2026:
        pytest.skip("pasta is not installed, or from before 2026")
    lines = lines_of_today()
    assert len(lines) > 900
    assert {line: ours(line) for line in lines} == {line: run(line) for line in lines}
