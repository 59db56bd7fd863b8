"""slirp4netns' command line: every option with a valid, a missing and a malformed argument."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import netd
from netd.dialects.slirp4netns import texts
from netd.dialects.slirp4netns.grammar import OPTIONS, Invocation, Outcome, parse

ME = "/usr/bin/slirp4netns"
DEFAULTS: dict[str, Any] = {
    "target": "42",
    "by_path": False,
    "ifname": "tap0",
    "network": IPv4Network("10.0.2.0/24"),
    "warnings": "",
    "configure": False,
    "exit_fd": -1,
    "ready_fd": -1,
    "mtu": 1500,
    "api_socket": "",
    "userns_path": "",
    "disable_host_loopback": False,
    "disable_dns": False,
    "enable_ipv6": False,
    "sandbox": False,
    "outbound": "",
    "outbound6": "",
    "mac": "",
    "tap_fd": -1,
}
IPV6 = "WARNING: Support for IPv6 is experimental\n"
SECCOMP = "WARNING: Support for seccomp is experimental\n"
OUTBOUND = "WARNING: Support for --outbound-addr is experimental\n"
OUTBOUND6 = "WARNING: Support for --outbound-addr6 is experimental\n"
NO_LOOPBACK = (
    "WARNING: --no-host-loopback is deprecated and will be removed in future releases, "
    "please use --disable-host-loopback instead.\n"
)
CREATE = (
    "WARNING: --create-sandbox is deprecated and will be removed in future releases, "
    "please use --enable-sandbox instead.\n"
)


def changed(call: Invocation) -> dict[str, Any]:
    """What is not the default."""
    return {f.name: getattr(call, f.name) for f in fields(call) if getattr(call, f.name) != DEFAULTS[f.name]}


VALID: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("-c", {"configure": True}),
    ("--configure", {"configure": True}),
    ("-e 3", {"exit_fd": 3}),
    ("-e3", {"exit_fd": 3}),
    ("--exit-fd=3", {"exit_fd": 3}),
    ("--exit-fd 0", {"exit_fd": 0}),
    ("--exit-fd=", {"exit_fd": 0}),
    ("-e 4294967297", {"exit_fd": 1}),
    ("-r 4", {"ready_fd": 4}),
    ("--ready-fd=4", {"ready_fd": 4}),
    ("-ce 3 -r 4", {"configure": True, "exit_fd": 3, "ready_fd": 4}),
    ("-r 3 -e 4", {"ready_fd": 3, "exit_fd": 4}),
    ("-m 1", None),
    ("-m 68", {"mtu": 68}),
    ("-m 65521", {"mtu": 65521}),
    ("--mtu=1500", {}),
    ("--mtu 9000", {"mtu": 9000}),
    ("--mtu=+0576", {"mtu": 576}),
    ("--mtu=9000 --mtu=1400", {"mtu": 1400}),
    ("-6", {"enable_ipv6": True, "warnings": IPV6}),
    ("--enable-ipv6", {"enable_ipv6": True, "warnings": IPV6}),
    ("-a /tmp/s", {"api_socket": "/tmp/s"}),
    ("--api-socket=s", {"api_socket": "s"}),
    ("--api-socket s -a t", {"api_socket": "t"}),
    ("--cidr=192.168.0.0/16", {"network": IPv4Network("192.168.0.0/16")}),
    ("--cidr 10.0.2.128/25", {"network": IPv4Network("10.0.2.128/25")}),
    ("--cidr 128.0.0.0/1", {"network": IPv4Network("128.0.0.0/1")}),
    ("--disable-host-loopback", {"disable_host_loopback": True}),
    ("--disable-host", {"disable_host_loopback": True}),
    ("--no-host-loopback", {"disable_host_loopback": True, "warnings": NO_LOOPBACK}),
    ("--netns-type=pid", {}),
    ("--userns-path=/proc/1/ns/user", {"userns_path": "/proc/1/ns/user"}),
    ("--enable-sandbox", {"sandbox": True}),
    ("--create-sandbox", {"sandbox": True, "warnings": CREATE}),
    ("--enable-seccomp", {"warnings": SECCOMP}),
    ("--outbound-addr=192.0.2.1", {"outbound": "192.0.2.1", "warnings": OUTBOUND}),
    ("--outbound-addr eth0", {"outbound": "eth0", "warnings": OUTBOUND}),
    ("--outbound-addr6=2001:db8::1", {"outbound6": "2001:db8::1", "warnings": OUTBOUND6}),
    ("--outbound-addr6 eth0", {"outbound6": "eth0", "warnings": OUTBOUND6}),
    ("--disable-dns", {"disable_dns": True}),
    ("-c --macaddress=02:22:33:44:55:66", {"configure": True, "mac": "02:22:33:44:55:66"}),
    ("--macaddress 2:2 -c", {"configure": True, "mac": "02:02:00:00:00:00"}),
    ("-c --macaddress=0x2:0X3:+4:0005", {"configure": True, "mac": "02:03:04:05:00:00"}),
    ("-c --macaddress=02:22:33:44:55:66x", {"configure": True, "mac": "02:22:33:44:55:66"}),
    ("--target-type=netns", {}),
    ("-6 --enable-seccomp -6", {"enable_ipv6": True, "warnings": IPV6 + SECCOMP + IPV6}),
]


@pytest.mark.parametrize(("words", "expected"), VALID, ids=[words or "nothing" for words, _ in VALID])
@pytest.mark.parametrize("where", ["before", "after", "between"])
def test_valid(words: str, expected: dict[str, Any] | None, where: str) -> None:
    options = words.split()
    argv = {
        "before": [*options, "42", "tap0"],
        "after": ["42", "tap0", *options],
        "between": ["42", *options, "tap0"],
    }[where]
    call = parse(ME, argv)
    if expected is None:
        assert isinstance(call, Outcome) and call.status == 1
    else:
        assert isinstance(call, Invocation), call
        assert changed(call) == expected


USAGE = object()  # the message, and the usage on stdout
INVALID: list[tuple[str, str, object]] = [
    ("", "", USAGE),
    ("42", "", USAGE),
    ("-c 42", "", USAGE),
    ("--cidr=x", "", USAGE),
    ("abc tap0", "PID must be a positive integer\n", USAGE),
    ("0 tap0", "PID must be a positive integer\n", USAGE),
    ("-- -5 tap0", "PID must be a positive integer\n", USAGE),
    ("12x tap0", "PID must be a positive integer\n", USAGE),
    ("99999999999999999999999 tap0", "PID must be a positive integer\n", USAGE),
    (" tap0", "", USAGE),
    ("--foo 42 tap0", f"{ME}: unrecognized option '--foo'\n", USAGE),
    ("-Z 42 tap0", f"{ME}: invalid option -- 'Z'\n", USAGE),
    ("--e 42 tap0", f"{ME}: option '--e' is ambiguous; possibilities: '--exit-fd' '--enable-ipv6' "
                    "'--enable-sandbox' '--enable-seccomp'\n", USAGE),
    ("--configure=1 42 tap0", f"{ME}: option '--configure' doesn't allow an argument\n", USAGE),
    ("-e x 42 tap0", "exit-fd must be a non-negative integer\n", USAGE),
    ("-e -1 42 tap0", "exit-fd must be a non-negative integer\n", USAGE),
    ("-e 99999999999999999999999 42 tap0", "exit-fd must be a non-negative integer\n", USAGE),
    ("-e -h", "exit-fd must be a non-negative integer\n", USAGE),
    ("--ready-fd=3x 42 tap0", "ready-fd must be a non-negative integer\n", USAGE),
    ("-r -1 42 tap0", "ready-fd must be a non-negative integer\n", USAGE),
    ("--mtu=0 42 tap0", "MTU must be a positive integer (< 65522)\n", USAGE),
    ("--mtu= 42 tap0", "MTU must be a positive integer (< 65522)\n", USAGE),
    ("--mtu=x 42 tap0", "MTU must be a positive integer (< 65522)\n", USAGE),
    ("--mtu=65522 42 tap0", "MTU must be a positive integer (< 65522)\n", USAGE),
    ("--mtu=-3 42 tap0", "MTU must be a positive integer (< 65522)\n", USAGE),
    ("--mtu=0x5dc 42 tap0", "MTU must be a positive integer (< 65522)\n", USAGE),
    ("--cidr=x 42 tap0", "invalid CIDR: x\n", ""),
    ("--cidr= 42 tap0", "invalid CIDR: \n", ""),
    ("--cidr=10.0.2.0 42 tap0", "invalid CIDR: 10.0.2.0\n", ""),
    ("--cidr=fd00::/64 42 tap0", "invalid CIDR: fd00::/64\n", ""),
    ("--cidr=10.0.2.0/24/3 42 tap0", "invalid CIDR: 10.0.2.0/24/3\n", ""),
    ("--cidr=300.0.2.0/24 42 tap0", "invalid network address: 300.0.2.0\n", ""),
    ("--cidr=10.0.2.0/26 42 tap0", "prefix length needs to be 1-25\n", ""),
    ("--cidr=10.0.2.0/0 42 tap0", "prefix length needs to be 1-25\n", ""),
    ("--cidr=10.0.2.5/24 42 tap0",
     "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24\n", ""),
    ("--macaddress=02:00:00:00:00:01 42 tap0",
     "--macaddr cannot be specified when --configure or -c is not specified\n", USAGE),
    ("--outbound-addr= 42 tap0", "outbound-addr has to be valid ipv4 address or interface name.", OUTBOUND),
    ("--outbound-addr6= 42 tap0", "outbound-addr has to be valid ipv4 address or iterface name.", OUTBOUND6),
    ("--target-type=foo x y", '--target-type must be either "netns" or "bess"\n', USAGE),
    ("--target-type=bess", "", USAGE),
    ("--target-type=bess -c /x", "--configure conflicts with --target-type=bess\n", USAGE),
    ("--target-type=bess --netns-type=path /x", "--netns-type conflicts with --target-type=bess\n", USAGE),
    ("--target-type=bess --userns-path=/ /x", "--userns-path conflicts with --target-type=bess\n", USAGE),
    ("--target-type=bess /x y", "too many arguments\n", USAGE),
    ("--target-type=bess /x", "netd: --target-type=bess is not supported, only namespaces are\n", ""),
    ("--netns-type=tapfd", "", USAGE),
    ("--netns-type=tapfd x", "tapfd must be a non-negative integer\n", USAGE),
    ("--netns-type=tapfd -- -1", "tapfd must be a non-negative integer\n", USAGE),
    ("--netns-type=tapfd 99999999999999999999999", "tapfd must be a non-negative integer\n", USAGE),
    ("-c --netns-type=tapfd 5", "--configure conflicts with --netns-type=tapfd\n", USAGE),
    ("--netns-type=tapfd --userns-path=/ 5", "--userns-path conflicts with --netns-type=tapfd\n", USAGE),
    ("--netns-type=tapfd --macaddress=2:2 5",
     "--macaddr cannot be specified when --configure or -c is not specified\n", USAGE),
    ("-m 67 42 tap0", "netd: the smallest MTU of IPv4 is 68 (RFC 791)\nslirp_new failed\ncreate_slirp failed\n"
                      "do_slirp is exiting\ndo_slirp failed\nparent failed\n", ""),
]  # fmt: skip
INVALID += [
    (f"{spelling} ", f"{ME}: {complaint}\n", USAGE)
    for option in OPTIONS
    if option.argument
    for spelling, complaint in (
        (f"--{option.long}", f"option '--{option.long}' requires an argument"),
        *([(f"-c{option.short}", f"option requires an argument -- '{option.short}'")] if option.short else []),
    )
]
INVALID += [
    (f"--{option.long}=x 42 tap0", f"{ME}: option '--{option.long}' doesn't allow an argument\n", USAGE)
    for option in OPTIONS
    if not option.argument
]


@pytest.mark.parametrize(("words", "stderr", "stdout"), INVALID, ids=[words for words, _, _ in INVALID])
def test_invalid(words: str, stderr: str, stdout: object) -> None:
    expected = texts.usage(ME, False) if stdout is USAGE else stdout
    assert parse(ME, words.split()) == Outcome(1, str(expected), stderr)


@pytest.mark.parametrize("mac", ["", "zz", "123", "1:", ":1", "1::2", "-1:2", "aabbccddeeff", "112:3"])
def test_invalid_mac(mac: str) -> None:
    assert parse(ME, ["-c", f"--macaddress={mac}", "42", "tap0"]) == Outcome(
        1,
        "",
        f'"{mac}" is an invalid MAC address.\n'
        "macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':').",
    )


@pytest.mark.parametrize("mac", ["1:2:3:4:5:6:7", "1:2:3:4:5:6:"])
def test_a_mac_that_is_too_long(mac: str) -> None:
    outcome = parse(ME, ["-c", f"--macaddress={mac}", "42", "tap0"])
    assert isinstance(outcome, Outcome)
    assert outcome.stderr.startswith(f'"{mac}" is an invalid MAC address.  Is it too long?\nmacaddress has to be')


@pytest.mark.parametrize("kind", ["path", "foo", ""])
def test_any_other_netns_type_is_a_path(kind: str) -> None:
    call = parse(ME, [f"--netns-type={kind}", "/run/netns/x", "eth0"])
    assert isinstance(call, Invocation)
    assert (call.target, call.by_path, call.ifname) == ("/run/netns/x", True, "eth0")
    assert isinstance(parse(ME, ["--netns-type=path", f"--netns-type={kind}", "12x", "t"]), Invocation)


def test_a_tap_by_its_descriptor_needs_no_name() -> None:
    for argv in (["--netns-type=tapfd", "5"], ["5", "--netns-type", "tapfd", "-r", "3"]):
        call = parse(ME, argv)
        assert isinstance(call, Invocation)
        assert (call.tap_fd, call.target, call.by_path, call.ifname, call.warnings) == (5, "", False, "", "")
    call = parse(ME, ["--netns-type=tapfd", "5", "tap0"])
    assert isinstance(call, Invocation) and call.warnings == "WARNING: too many arguments\n"
    call = parse(ME, ["--netns-type=tapfd", "--netns-type=pid", "5", "tap0"])
    assert isinstance(call, Invocation) and (call.tap_fd, call.target) == (-1, "5")


def test_numbers_are_read_as_c_reads_them() -> None:
    for text, pid in ((" 12", "12"), ("+7", "7"), ("0012", "12"), ("4294967297", "1")):
        call = parse(ME, [text, "tap0"])
        assert isinstance(call, Invocation) and call.target == pid


def test_more_words_only_warn() -> None:
    call = parse(ME, ["-6", "42", "tap0", "more", "--", "-x"])
    assert isinstance(call, Invocation) and call.warnings == IPV6 + "WARNING: too many arguments\n"


def test_a_long_interface_name_is_cut_to_15_bytes() -> None:
    for name, cut in (
        ("b" * 20, "b" * 15),
        ("tap0", "tap0"),
        ("\u20ac" * 6, "\u20ac" * 5),
        ("\udcff" * 20, "\udcff" * 15),
    ):
        call = parse(ME, ["42", name])
        assert isinstance(call, Invocation) and call.ifname == cut


def test_help_has_what_podman_and_rootlesskit_look_for() -> None:
    for word in ("-h", "--help", "--he"):
        outcome = parse(ME, ["--mtu=1500", word, "--nonsense"])
        assert isinstance(outcome, Outcome) and (outcome.status, outcome.stderr) == (0, "")
        assert outcome.stdout == texts.usage(ME, False)
        for option in OPTIONS:
            deprecated = option.long in ("no-host-loopback", "create-sandbox")
            assert (f"--{option.long}" in outcome.stdout) != deprecated
    podman = parse(ME, ["--help"], podman=True)
    assert isinstance(podman, Outcome)
    assert "sandbox" not in podman.stdout, "Podman would start a shim that stays in a private mount namespace (T6)"
    wanted = (
        "--disable-host-loopback --mtu --enable-seccomp --cidr --outbound-addr --enable-ipv6 --netns-type --api-socket"
    )
    assert all(option in podman.stdout for option in wanted.split())


def test_version_is_five_lines_in_the_form_that_is_parsed() -> None:
    for word in ("-v", "--version"):
        outcome = parse(ME, [word])
        assert isinstance(outcome, Outcome) and (outcome.status, outcome.stderr) == (0, "")
        lines = outcome.stdout.splitlines()
        assert len(lines) == 5 and lines[0] == f"slirp4netns version 1.3.1 (netd {netd.__version__})"
        assert [line.split(":")[0] for line in lines[1:]] == [
            "commit", "libslirp", "SLIRP_CONFIG_VERSION_MAX", "libseccomp",
        ]  # fmt: skip
        assert int(lines[3].split(": ")[1]) >= 3


@settings(deadline=None, max_examples=500)
@given(
    st.lists(
        st.sampled_from([f"--{option.long}" for option in OPTIONS])
        | st.sampled_from(["-c", "-e", "-r", "-m", "-6", "-a", "--", "42", "tap0"])
        | st.text(max_size=8)
        | st.builds(lambda option, text: f"--{option.long}={text}", st.sampled_from(OPTIONS), st.text(max_size=8)),
        max_size=8,
    )
)
def test_no_command_line_is_too_much_for_it(argv: list[str]) -> None:
    call = parse(ME, argv)
    if isinstance(call, Outcome):
        assert call.status in (0, 1) and (call.stderr or call.stdout)
    else:
        assert 68 <= call.mtu <= 65521 and call.network.prefixlen <= 25
        assert not call.mac or len(bytes.fromhex(call.mac.replace(":", ""))) == 6
