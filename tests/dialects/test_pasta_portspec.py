"""Port specifications: the whole grammar, valid and invalid, and the table that the rules stand in.

Rules are written in pasta's own notation (``str(PortRule)``), with single spaces. What stands here is what the pasta of
October 2026 prints for the same arguments.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netd.dialects.pasta.portspec import PortError, PortRule, PortSpec, PortTable, parse_ports

EPHEMERAL = range(32768, 61000)  # Linux' default


def parse(text: str, option: str = "t") -> PortSpec:
    return parse_ports(text, option, EPHEMERAL)


def notation(spec: PortSpec) -> list[str]:
    return [re.sub(" +", " ", str(rule)).strip() for rule in spec.rules]


VALID: list[tuple[str, list[str]]] = [
    # one port, ranges, lists
    ("22", ["TCP [*]:22 => 22"]),
    ("1", ["TCP [*]:1 => 1"]),
    ("65535", ["TCP [*]:65535 => 65535"]),
    ("22,25", ["TCP [*]:22 => 22", "TCP [*]:25 => 25"]),
    ("25,22", ["TCP [*]:25 => 25", "TCP [*]:22 => 22"]),
    ("22-80", ["TCP [*]:22-80 => 22-80"]),
    ("22-22", ["TCP [*]:22 => 22"]),
    ("1-65535", ["TCP [*]:1-65535 => 1-65535"]),
    ("22-24,80-81,443", ["TCP [*]:22-24 => 22-24", "TCP [*]:80-81 => 80-81", "TCP [*]:443 => 443"]),
    # mappings
    ("22:23", ["TCP [*]:22 => 23"]),
    ("22:22", ["TCP [*]:22 => 22"]),
    ("22-80:32-90", ["TCP [*]:22-80 => 32-90"]),
    ("32-90:22-80", ["TCP [*]:32-90 => 22-80"]),
    ("22:23,24:25,26", ["TCP [*]:22 => 23", "TCP [*]:24 => 25", "TCP [*]:26 => 26"]),
    ("12345-12345:80-80", ["TCP [*]:12345 => 80"]),  # Podman's
    # exclusions, wherever they stand
    ("22-30,~25", ["TCP [*]:22-24 => 22-24", "TCP [*]:26-30 => 26-30"]),
    ("~25,22-30", ["TCP [*]:22-24 => 22-24", "TCP [*]:26-30 => 26-30"]),
    ("22-30,~25,~28-29", ["TCP [*]:22-24 => 22-24", "TCP [*]:26-27 => 26-27", "TCP [*]:30 => 30"]),
    ("22-30,~28-29,~25", ["TCP [*]:22-24 => 22-24", "TCP [*]:26-27 => 26-27", "TCP [*]:30 => 30"]),
    ("22-30,~20-25,~24-27", ["TCP [*]:28-30 => 28-30"]),
    ("22-30,~22,~30", ["TCP [*]:23-29 => 23-29"]),
    ("22-30,~31,~21", ["TCP [*]:22-30 => 22-30"]),
    ("22-30:32-40,~25", ["TCP [*]:22-24 => 32-34", "TCP [*]:26-30 => 36-40"]),
    ("22-24,32-34,~23-33", ["TCP [*]:22 => 22", "TCP [*]:34 => 34"]),
    ("22,~22", []),
    ("22-23,~1-100", []),
    ("2000-5000,~3000-3010", ["TCP [*]:2000-2999 => 2000-2999", "TCP [*]:3011-5000 => 3011-5000"]),
    ("192.0.2.1/20-30,~25", ["TCP [192.0.2.1]:20-24 => 20-24", "TCP [192.0.2.1]:26-30 => 26-30"]),
    # what to listen on
    ("192.0.2.1/22", ["TCP [192.0.2.1]:22 => 22"]),
    ("[192.0.2.1]/22", ["TCP [192.0.2.1]:22 => 22"]),
    ("0.0.0.0/22", ["TCP [0.0.0.0]:22 => 22"]),
    ("::1/22", ["TCP [::1]:22 => 22"]),
    ("[::1]/22", ["TCP [::1]:22 => 22"]),
    ("::/22", ["TCP [::]:22 => 22"]),
    ("[::]/8080", ["TCP [::]:8080 => 8080"]),  # Podman 6.0's pesto
    ("::1/80-80:80-80", ["TCP [::1]:80 => 80"]),  # Podman's
    ("2001:DB8:0::0:2/22", ["TCP [2001:db8::2]:22 => 22"]),
    ("::ffff:127.0.0.1/22", ["TCP [127.0.0.1]:22 => 22"]),
    ("::127.0.0.1/22", ["TCP [::127.0.0.1]:22 => 22"]),
    ("*/22", ["TCP [*]:22 => 22"]),
    ("/22", ["TCP [*]:22 => 22"]),
    ("%eth0/22", ["TCP [*]%eth0:22 => 22"]),
    ("*%eth0/22", ["TCP [*]%eth0:22 => 22"]),
    ("192.0.2.1%eth0/22", ["TCP [192.0.2.1]%eth0:22 => 22"]),
    ("fe80::1%eth0/22", ["TCP [fe80::1]%eth0:22 => 22"]),
    ("[fe80::1]%eth0/22", ["TCP [fe80::1]%eth0:22 => 22"]),
    ("%eth0.5/22", ["TCP [*]%eth0.5:22 => 22"]),
    ("%abcdefghijklmno/22", ["TCP [*]%abcdefghijklmno:22 => 22"]),
    ("22::5/23", ["TCP [22::5]:23 => 23"]),  # an address, not a port
    ("5000:2001:db8::5/6000", ["TCP [5000:2001:db8::5]:6000 => 6000"]),  # likewise
    ("192.0.2.2%eth0/5000-5002:5001-5003", ["TCP [192.0.2.2]%eth0:5000-5002 => 5001-5003"]),  # Podman's tests
    ("[2001:db8::2]%eth0/5000-5002", ["TCP [2001:db8::2]%eth0:5000-5002 => 5000-5002"]),
    # other targets
    ("0.0.0.0/5000:192.0.2.5/6000", ["TCP [0.0.0.0]:5000 => 192.0.2.5:6000"]),
    ("0.0.0.0/5000:192.0.2.5", ["TCP [0.0.0.0]:5000 => 192.0.2.5:5000"]),
    ("0.0.0.0/22-24:192.0.2.5/32-34", ["TCP [0.0.0.0]:22-24 => 192.0.2.5:32-34"]),
    (
        "0.0.0.0/22-24:192.0.2.5,~23,30:31",
        ["TCP [0.0.0.0]:22 => 192.0.2.5:22", "TCP [0.0.0.0]:24 => 192.0.2.5:24", "TCP [0.0.0.0]:30 => 31"],
    ),
    ("0.0.0.0/12345:10.88.0.7/80", ["TCP [0.0.0.0]:12345 => 10.88.0.7:80"]),  # Podman 6.1's pesto
    ("[::]/12345:fda6::2/80", ["TCP [::]:12345 => fda6::2:80"]),
    ("::/22:[2001:db8::5]/23", ["TCP [::]:22 => 2001:db8::5:23"]),
    ("::/22:[2001:db8::5]", ["TCP [::]:22 => 2001:db8::5:22"]),
    ("::/22:::1", ["TCP [::]:22 => ::1:22"]),
    ("::/22:23::/24", ["TCP [::]:22 => 23:::24"]),
    ("127.0.0.1/22:127.0.0.1/23", ["TCP [127.0.0.1]:22 => 127.0.0.1:23"]),
    ("0.0.0.0/22:::ffff:192.0.2.5", ["TCP [0.0.0.0]:22 => 192.0.2.5:22"]),
    ("22:192.0.2.5/23", ["TCP [*]:22 => 192.0.2.5:23"]),  # which no table takes, unless it has one family alone
    ("22:0.0.0.0/23", ["TCP [*]:22 => 23"]),  # no address is the guest
    ("22:::", ["TCP [*]:22 => 22"]),
    # all
    ("all", ["TCP [*]:1-32767 => 1-32767 (best effort)", "TCP [*]:61000-65535 => 61000-65535 (best effort)"]),
    ("all,all", ["TCP [*]:1-32767 => 1-32767 (best effort)", "TCP [*]:61000-65535 => 61000-65535 (best effort)"]),
    ("all,~1-32760", [
        "TCP [*]:32761-32767 => 32761-32767 (best effort)", "TCP [*]:61000-65535 => 61000-65535 (best effort)",
    ]),
    ("~22", [
        "TCP [*]:1-21 => 1-21 (best effort)", "TCP [*]:23-32767 => 23-32767 (best effort)",
        "TCP [*]:61000-65535 => 61000-65535 (best effort)",
    ]),
    ("~22,all", [
        "TCP [*]:1-21 => 1-21 (best effort)", "TCP [*]:23-32767 => 23-32767 (best effort)",
        "TCP [*]:61000-65535 => 61000-65535 (best effort)",
    ]),
    ("~20000-20010", [
        "TCP [*]:1-19999 => 1-19999 (best effort)", "TCP [*]:20011-32767 => 20011-32767 (best effort)",
        "TCP [*]:61000-65535 => 61000-65535 (best effort)",
    ]),
    ("~32000-61999", ["TCP [*]:1-31999 => 1-31999 (best effort)", "TCP [*]:62000-65535 => 62000-65535 (best effort)"]),
    ("~0", ["TCP [*]:1-32767 => 1-32767 (best effort)", "TCP [*]:61000-65535 => 61000-65535 (best effort)"]),
    ("~1-65535", []),
    ("::1/all,~61000-65535", ["TCP [::1]:1-32767 => 1-32767 (best effort)"]),
    ("127.0.0.6/all:192.0.2.6", [
        "TCP [127.0.0.6]:1-32767 => 192.0.2.6:1-32767 (best effort)",
        "TCP [127.0.0.6]:61000-65535 => 192.0.2.6:61000-65535 (best effort)",
    ]),
    ("0.0.0.0/all:192.0.2.6,all:192.0.2.7,~1-32766,~61000-65535", [
        "TCP [0.0.0.0]:32767 => 192.0.2.7:32767 (best effort)",  # the last one
    ]),
    ("0.0.0.0/all:192.0.2.6,all,~1-32766,~61000-65535", ["TCP [0.0.0.0]:32767 => 32767 (best effort)"]),
    ("all,80", ["TCP [*]:80 => 80"]),  # some ports are not all
    ("80,all", ["TCP [*]:80 => 80"]),
    # auto
    ("auto", [
        "TCP [*]:1-32767 => 1-32767 (best effort) (auto-scan)",
        "TCP [*]:61000-65535 => 61000-65535 (best effort) (auto-scan)",
    ]),
    ("auto,auto,all,~1-32766,~61000-65535", ["TCP [*]:32767 => 32767 (best effort) (auto-scan)"]),
    ("8000-8010,auto", ["TCP [*]:8000-8010 => 8000-8010 (auto-scan)"]),
    ("auto,8000-8010", ["TCP [*]:8000-8010 => 8000-8010 (auto-scan)"]),
    ("8000:80,auto,8001:81", ["TCP [*]:8000 => 80 (auto-scan)", "TCP [*]:8001 => 81 (auto-scan)"]),
    ("80,auto,~80", []),
    ("::1/auto,~61000-65535", ["TCP [::1]:1-32767 => 1-32767 (best effort) (auto-scan)"]),
    ("192.0.2.2/auto,~61000-65535", ["TCP [192.0.2.2]:1-32767 => 1-32767 (best effort) (auto-scan)"]),
    ("%eth0/auto,~61000-65535", ["TCP [*]%eth0:1-32767 => 1-32767 (best effort) (auto-scan)"]),
    ("0.0.0.0/auto,22:192.0.2.5", ["TCP [0.0.0.0]:22 => 192.0.2.5:22 (auto-scan)"]),
    ("none", []),
    # numbers as strtoul(3) reads them
    ("022", ["TCP [*]:22 => 22"]),
    ("0000000000000000000000000022", ["TCP [*]:22 => 22"]),
    ("+22", ["TCP [*]:22 => 22"]),
    (" 22, 23- 24, 25: 26,~ 24", ["TCP [*]:22 => 22", "TCP [*]:23 => 23", "TCP [*]:25 => 26"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "rules"), VALID, ids=[text for text, _ in VALID])
def test_valid(text: str, rules: list[str]) -> None:
    spec = parse(text)
    assert notation(spec) == rules
    assert (spec.option, spec.text, spec.none) == ("t", text, text == "none")
    assert notation(parse(text, "u")) == [rule.replace("TCP", "UDP") for rule in rules]


# Everything for -T and -U but an address to listen on: that is always the loopback device.
@pytest.mark.parametrize(
    ("text", "rules"),
    [case for case in VALID if "[*]:" in "".join(case[1]) and not case[0].startswith(("*/", "/"))],
)
@pytest.mark.parametrize(("option", "protocol"), [("T", "TCP"), ("U", "UDP")])
def test_valid_from_the_namespace(text: str, rules: list[str], option: str, protocol: str) -> None:
    expected = [rule.replace("TCP [*]:", f"{protocol} [*]%lo:") for rule in rules]
    assert notation(parse(text, option)) == expected


def test_a_rule_in_full() -> None:
    """What the notation stands for."""
    assert parse("192.0.2.1%eth0/22-24:198.51.100.7/32-34,auto,~23", "u").rules == (
        PortRule("udp", 22, 22, 32, "192.0.2.1", "eth0", "198.51.100.7", best_effort=False, auto=True),
        PortRule("udp", 24, 24, 34, "192.0.2.1", "eth0", "198.51.100.7", best_effort=False, auto=True),
    )
    assert parse("all,~1-60999", "T").rules == (PortRule("tcp", 61000, 65535, 61000, interface="lo", best_effort=True),)
    rule = PortRule("tcp", 5000, 5010, 6000)
    assert rule.to_last == 6010 and str(rule) == "TCP [*]:5000-5010  =>  6000-6010 "
    assert (
        str(PortRule("tcp", 1, 2, 1, best_effort=True, auto=True)) == "TCP [*]:1-2  =>  1-2  (best effort) (auto-scan)"
    )


INVALID = [
    # no ports
    *("", "x", "*", "-", "~", "~x", ":", ":22", ",", "22,", ",22", "22,,23", "tcp", "22/tcp", "\u0662\u0662", "22\n"),
    *("22-", "-22", "22--23", "22-x", "x-22", "30-20", "1-2-3", "22:", "22:x", "22:23:", "22:23:24", "22::", ":22:23"),
    *("22:-23", "22:23-", "~22:23", "~22,~", "22 ", "22 -23", "22 :23", "0x16", "2 2", "22;23", "22.23"),
    *("65536", "1-65536", "22:65536", "65535-65536:1-2", "~65536", "99999999999999999999999", "4294967318"),
    *("18446744073709551638", "9" * 5000),
    *("22:23-24", "22-23:24", "22-80:32-100", "22-24:32-33"),  # ranges of different lengths
    # words
    *(
        "none,22",
        "22,none",
        "NONE",
        "All",
        "AUTO",
        "all:",
        "all:22",
        "all:x",
        "all-5",
        "~all",
        "allx",
        "auto22",
        "22auto",
    ),
    *("auto:192.0.2.1", "all:192.0.2.1/22", "0.0.0.0/all:192.0.2.1/22", "any"),
    # targets
    *(
        "22:/23",
        "22:*/23",
        "22:*",
        "22:192.0.2.1/",
        "22:192.0.2.1/23-24",
        "22:192.0.2.1/all",
        "22:192.0.2",
        "22:192.0.2.1x",
    ),
    *(
        "22:[fe80::1]%eth0/23",
        "22:192.0.2.1%eth0/23",
        "22:[::1",
        "22:::1]",
        "22:[]",
        "22:192.0.2.1/23/24",
        "22:localhost",
        "22:0192.0.2.1",
    ),
]


@pytest.mark.parametrize("text", INVALID)
def test_invalid(text: str) -> None:
    for option in "tuTU":
        shown = text.partition("/")[2] if text.startswith("0.0.0.0/") and option in "tu" else text
        message = f"Invalid port specifier '{shown}'"
        if text.startswith("0.0.0.0/") and option in "TU":
            message = f"Listening address not allowed for -{option} {text}"
        with pytest.raises(PortError) as caught:
            parse(text, option)
        assert str(caught.value) == message


INVALID_LISTENING: list[tuple[str, str]] = [
    # an address that is none is read as ports, and shown whole
    *[
        (text, text)
        for text in (
            *("x/22", "localhost/22", "127.1/22", "0127.0.0.1/22", "127.0.0.1.1/22", "256.0.0.1/22", "127.0.0.1 /22"),
            *(
                "[]/22",
                "[*]/22",
                "**/22",
                "[::1/22",
                "::1]/22",
                "[::1]x/22",
                "[127.0.0.1%lo]/22",
                ":::/22",
                "1::2::3/22",
            ),
            *("%/22", "127.0.0.1%/22", "[::1]%/22", "%a b/22", "%abcdefghijklmnop/22", "127.0.0.1%abcdefghijklmnop/22"),
            *("127.0.0.1%lo", "127.0.0.1", "::1", "eth0/22", "%" + "\u00e9" * 8 + "/22"),
        )
    ],
    # after one that is, only the rest is shown
    ("127.0.0.1/", ""),
    ("/", ""),
    ("*/", ""),
    ("127.0.0.1/x", "x"),
    ("127.0.0.1/none", "none"),
    ("127.0.0.1/22/23", "22/23"),
    ("127.0.0.1/22,192.0.2.1/23", "22,192.0.2.1/23"),
    ("::1%lo/~", "~"),
    ("*/all:22", "all:22"),
]


@pytest.mark.parametrize(("text", "shown"), INVALID_LISTENING)
def test_invalid_with_an_address_to_listen_on(text: str, shown: str) -> None:
    with pytest.raises(PortError) as caught:
        parse(text)
    assert str(caught.value) == f"Invalid port specifier '{shown}'"


@pytest.mark.parametrize("name", [".", ".."])
def test_no_interface_of_that_name(name: str) -> None:
    with pytest.raises(PortError) as caught:
        parse(f"%{name}/22")
    assert str(caught.value) == f"Invalid interface name: {name}"


@pytest.mark.parametrize("option", ["T", "U"])
@pytest.mark.parametrize("text", ["127.0.0.1/22", "*/22", "/22", "%lo/22", "[::1]%lo/22", "127.0.0.1/x", "::1/none"])
def test_no_address_to_listen_on_in_the_namespace(option: str, text: str) -> None:
    with pytest.raises(PortError) as caught:
        parse(text, option)
    assert str(caught.value) == f"Listening address not allowed for -{option} {text}"


# --- rules in a table ----------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, str, str]] = [
    ("0", "Forwarding rule attempts to map from port 0", "TCP [*]:0  =>  0 "),
    ("0-5", "Forwarding rule attempts to map from port 0", "TCP [*]:0-5  =>  0-5 "),
    ("0:0", "Forwarding rule attempts to map from port 0", "TCP [*]:0  =>  0 "),
    ("5:0", "Forwarding rule attempts to map to port 0", "TCP [*]:5  =>  0 "),
    ("5-6:0-1", "Forwarding rule attempts to map to port 0", "TCP [*]:5-6  =>  0-1 "),
    ("0.0.0.0/5:224.0.0.1/0", "Forwarding rule attempts to map to port 0", "TCP [0.0.0.0]:5  =>  224.0.0.1:0 "),
    ("0.0.0.0/22:224.0.0.1", "Multicast target address 224.0.0.1 for forwarding rule", "TCP [0.0.0.0]:22  =>  224.0.0.1:22 "),
    ("0.0.0.0/22:255.255.255.255", "Multicast target address 255.255.255.255 for forwarding rule",
     "TCP [0.0.0.0]:22  =>  255.255.255.255:22 "),
    ("::/22:ff02::1/23", "Multicast target address ff02::1 for forwarding rule", "TCP [::]:22  =>  ff02::1:23 "),
    ("22:224.0.0.1", "Multicast target address 224.0.0.1 for forwarding rule", "TCP [*]:22  =>  224.0.0.1:22 "),
    ("22:192.0.2.5/23", "Dual stack forward to IPv4 address 192.0.2.5 unsupported\nDid you mean 0.0.0.0/... instead?",
     "TCP [*]:22  =>  192.0.2.5:23 "),
    ("%eth0/22:192.0.2.5", "Dual stack forward to IPv4 address 192.0.2.5 unsupported\nDid you mean 0.0.0.0/... instead?",
     "TCP [*]%eth0:22  =>  192.0.2.5:22 "),
    ("22:::1", "Dual stack forward to IPv6 address ::1 unsupported\nDid you mean [::]/... instead?", "TCP [*]:22  =>  ::1:22 "),
    ("22:[2001:db8::5]/23", "Dual stack forward to IPv6 address 2001:db8::5 unsupported\nDid you mean [::]/... instead?",
     "TCP [*]:22  =>  2001:db8::5:23 "),
    ("all:192.0.2.5", "Dual stack forward to IPv4 address 192.0.2.5 unsupported\nDid you mean 0.0.0.0/... instead?",
     "TCP [*]:1-32767  =>  192.0.2.5:1-32767  (best effort)"),
    ("::1/22:192.0.2.5", "Forward from IPv6 (::1) to IPv4 (192.0.2.5) unsupported", "TCP [::1]:22  =>  192.0.2.5:22 "),
    ("0.0.0.0/22:2001:db8::5", "Forward from IPv4 (0.0.0.0) to IPv6 (2001:db8::5) unsupported",
     "TCP [0.0.0.0]:22  =>  2001:db8::5:22 "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem", "rule"), REFUSED, ids=[case[0] for case in REFUSED])
def test_no_table_takes(text: str, problem: str, rule: str) -> None:
    table = PortTable()
    with pytest.raises(PortError) as caught:
        table.extend(parse(text))
    assert str(caught.value) == f"{problem}\nUnable to add rule {rule}"
    assert table.rules == ()


CONFLICTS: list[tuple[str, str]] = [
    ("22", "22"), ("22", "22:23"), ("22:23", "22:24"), ("20-30", "25-35"), ("25-35", "20-30"), ("20-30", "30"),
    ("22", "127.0.0.1/22"), ("127.0.0.1/22", "22"), ("22", "0.0.0.0/22"), ("22", "::/22"), ("::/22", "22"),
    ("22", "*/22"), ("0.0.0.0/22", "127.0.0.1/22"), ("127.0.0.1/22", "0.0.0.0/22"), ("::/22", "::1/22"), ("::1/22", "::/22"),
    ("127.0.0.1/22", "127.0.0.1/22"), ("127.0.0.1/22", "::ffff:127.0.0.1/22"), ("::1/22", "[::1]/22"),
    # a socket that is bound to a device wants the same port
    ("%lo/22", "22"), ("%lo/22", "%eth0/22"), ("127.0.0.1%lo/22", "127.0.0.1/22"), ("127.0.0.1%lo/22", "127.0.0.1%eth0/22"),
    ("auto", "22"), ("22", "auto"), ("auto", "all"), ("all", "80"), ("auto", "auto"), ("22,auto", "22"),
    ("0.0.0.0/22:192.0.2.5", "0.0.0.0/22:192.0.2.6"),
]  # fmt: skip


@pytest.mark.parametrize(("there", "added"), CONFLICTS)
def test_two_rules_for_the_same_packet(there: str, added: str) -> None:
    table = PortTable()
    table.extend(parse(there))
    rules = table.rules
    with pytest.raises(PortError) as caught:
        table.extend(parse(added))
    first, second = parse(added).rules[0], rules[0]
    assert (
        str(caught.value) == f"Forwarding configuration conflict: {first} versus {second}\nUnable to add rule {first}"
    )
    assert table.rules == rules


def test_two_rules_of_one_specification() -> None:
    with pytest.raises(PortError, match=r"^Forwarding configuration conflict: TCP \[\*\]:22 .* versus TCP \[\*\]:22 "):
        PortTable().extend(parse("22,22"))


@pytest.mark.parametrize(
    "specs",
    [
        ("t22", "t23"), ("t22", "u22"), ("t20-30", "t31-40"), ("t22:80", "t23:80"),
        ("t127.0.0.1/22", "t127.0.0.2/22"), ("t::1/22", "t127.0.0.1/22"), ("t0.0.0.0/22", "t::/22"), ("t::/22", "t127.0.0.1/22"),
        ("t%eth0/22", "t%eth0/23"), ("t127.0.0.1/auto", "t::1/auto"), ("tauto", "uauto"), ("tnone", "t22"), ("tnone", "tnone"),
        ("t22", "unone"), ("t22,~22", "tnone"), ("t22", "t~1-65535"), ("t32768", "tauto"),
    ],
)  # fmt: skip
def test_rules_that_go_together(specs: tuple[str, ...]) -> None:
    table = PortTable()
    read = [parse(text[1:], text[0]) for text in specs]
    assert [table.extend(spec) for spec in read] == read
    assert table.rules == sum((spec.rules for spec in read), ())


@pytest.mark.parametrize("option", ["t", "u", "T", "U"])
def test_none_after_others(option: str) -> None:
    table = PortTable()
    table.extend(parse("22", option))
    with pytest.raises(PortError) as caught:
        table.extend(parse("none", option))
    assert str(caught.value) == f"-{option} none conflicts with previous options"


def test_one_family_alone() -> None:
    """No address is that family's; the other one's are refused."""
    four, six = PortTable(ipv6=False), PortTable(ipv4=False)
    assert notation(four.extend(parse("22"))) == ["TCP [0.0.0.0]:22 => 22"]
    assert notation(six.extend(parse("22"))) == ["TCP [::]:22 => 22"]
    assert notation(four.extend(parse("23:192.0.2.5"))) == ["TCP [0.0.0.0]:23 => 192.0.2.5:23"]
    assert notation(six.extend(parse("23:::1"))) == ["TCP [::]:23 => ::1:23"]
    assert notation(PortTable(ipv6=False).extend(parse("22", "T"))) == ["TCP [0.0.0.0]%lo:22 => 22"]
    for table, text, problem in (
        (four, "::1/24", "IPv6 forward, but IPv6 not enabled\nUnable to add rule TCP [::1]:24  =>  24 "),
        (six, "127.0.0.1/24", "IPv4 forward, but IPv4 not enabled\nUnable to add rule TCP [127.0.0.1]:24  =>  24 "),
        (
            six,
            "24:192.0.2.5",
            "Forward from IPv6 (::) to IPv4 (192.0.2.5) unsupported\nUnable to add rule TCP [::]:24  =>  192.0.2.5:24 ",
        ),
    ):
        with pytest.raises(PortError) as caught:
            table.extend(parse(text))
        assert str(caught.value) == problem


@pytest.mark.parametrize(("option", "name"), [("t", "TCP"), ("u", "UDP")])
def test_a_protocol_that_is_off(option: str, name: str) -> None:
    table = PortTable(without=(name.lower(),))
    table.extend(parse("none", option))
    with pytest.raises(PortError) as caught:
        table.extend(parse("22", option))
    assert str(caught.value) == (
        f"Can't add {name} forwarding rule, {name} not enabled\nUnable to add rule {name} [*]:22  =>  22 "
    )


def test_as_many_rules_as_fit() -> None:
    table = PortTable()
    table.extend(parse(",".join(str(1000 + 2 * i) for i in range(200))))
    table.extend(parse(",".join(str(1000 + 2 * i) for i in range(55)), "u"))
    assert len(table.rules) == 255
    with pytest.raises(PortError) as caught:
        table.extend(parse("7", "u"))
    assert str(caught.value) == "Too many rules (maximum 255)\nUnable to add rule UDP [*]:7  =>  7 "


def test_as_many_sockets_as_fit() -> None:
    table = PortTable()
    for last in range(1, 6):
        table.extend(parse(f"127.0.0.{last}/1-65535,auto"))
    table.extend(parse("127.1.0.0/1-5"))  # 5 * 65536 in all
    with pytest.raises(PortError) as caught:
        table.extend(parse("127.1.0.0/6"))
    assert str(caught.value) == (
        "Rules require too many listening sockets (maximum 327680)\nUnable to add rule TCP [127.1.0.0]:6  =>  6 "
    )
    table.delete(parse("127.1.0.0/1-5").rules[0])
    table.extend(parse("127.1.0.0/6"))


def test_a_specification_has_no_more_rules_than_show_that_it_is_too_long() -> None:
    """Of 64 KiB of text, in less than the time that would be felt."""
    begun = time.monotonic()
    spec = parse(",".join(f"{i},~{i}-{i + 1}" for i in range(1, 65000, 4)) + "," + ",".join(["1-65535"] * 100))
    assert len(spec.rules) == 256
    assert time.monotonic() - begun < 2


def test_delete() -> None:
    table = PortTable()
    for text in ("22", "30-40", "0.0.0.0/12345:10.88.0.7/80", "[::]/12345:fda6::2/80", "32000,auto"):
        table.extend(parse(text))
    for text, problem in (
        ("23", "Couldn't find forwarding rule to delete: TCP [*]:23  =>  23 "),
        ("35", "Specifier TCP [*]:35  =>  35  conflicts with rule TCP [*]:30-40  =>  30-40 , but doesn't match it, can't delete"),
        ("22-23", "Specifier TCP [*]:22-23  =>  22-23  conflicts with rule TCP [*]:22  =>  22 , but doesn't match it, can't delete"),
        ("32000", "Specifier TCP [*]:32000  =>  32000  conflicts with rule TCP [*]:32000  =>  32000  (auto-scan), but doesn't match it, can't delete"),
        ("[::]/12345", "Specifier TCP [::]:12345  =>  12345  conflicts with rule TCP [::]:12345  =>  fda6::2:80 , but doesn't match it, can't delete"),
    ):  # fmt: skip
        before = table.rules
        with pytest.raises(PortError) as caught:
            table.remove(parse(text))
        assert str(caught.value) == f"{problem}\nUnable to delete rule {parse(text).rules[0]}"
        assert table.rules == before
    with pytest.raises(PortError, match=r"^-t none conflicts with previous options$"):
        table.remove(parse("none"))
    for text in ("0.0.0.0/12345:10.88.0.7/80", "[::]/12345:fda6::2/80", "30-40", "22", "32000,auto"):
        table.remove(parse(text))
    assert table.rules == ()
    table.remove(parse("none"))


def test_a_table_of_one_family_deletes_as_it_adds() -> None:
    table = PortTable(ipv6=False)
    table.extend(parse("22"))
    table.remove(parse("22"))
    assert table.rules == ()


def test_a_copy_is_another_table() -> None:
    table = PortTable(ipv6=False, without=("udp",))
    table.extend(parse("22"))
    other = table.copy()
    other.clear()
    with pytest.raises(PortError):
        other.extend(parse("22", "u"))
    assert notation(other.extend(parse("23"))) == ["TCP [0.0.0.0]:23 => 23"]
    assert len(table.rules) == 1


# --- properties ----------------------------------------------------------------------------------------------------

PORT = st.integers(1, 65535)
RANGE = st.tuples(PORT, PORT).map(lambda ends: (min(ends), max(ends)))


@given(st.text() | st.text("0123456789-~:/,*%[].alnoetu ", max_size=40), st.sampled_from("tuTU"))
@example("9" * 10000, "t")
@example("\udc80/\udcff", "t")
def test_any_text_is_rules_or_an_error(text: str, option: str) -> None:
    try:
        spec = parse(text, option)
    except PortError as error:
        assert str(error) and not str(error).endswith("\n")
        return
    table = PortTable()
    for rule in spec.rules:
        assert 0 <= rule.first <= rule.last <= 65535 and 0 <= rule.to_first <= rule.to_last <= 65535
        try:
            table.add(rule)
        except PortError:
            return
    assert table.rules == spec.rules


@settings(deadline=None, max_examples=30)
@given(st.lists(RANGE, max_size=4), st.lists(RANGE, max_size=4), st.randoms(), st.booleans(), RANGE)
def test_the_ports_are_those_included_less_those_excluded(
    included: list[tuple[int, int]],
    excluded: list[tuple[int, int]],
    random: object,
    auto: bool,
    ephemeral: tuple[int, int],
) -> None:
    chunks = [f"{a}-{b}" for a, b in included] + [f"~{a}-{b}" for a, b in excluded] + ["auto"] * auto
    if not included and not excluded:
        chunks.append("all")
    random.shuffle(chunks)  # type: ignore[attr-defined]
    spec = parse_ports(",".join(chunks), "t", range(ephemeral[0], ephemeral[1] + 1))
    gone = {port for a, b in excluded for port in range(a, b + 1)}
    expected = [port for a, b in included for port in range(a, b + 1) if port not in gone]
    if not included:
        gone |= set(range(ephemeral[0], ephemeral[1] + 1))
        expected = [port for port in range(1, 65536) if port not in gone]
    assert sorted(port for rule in spec.rules for port in range(rule.first, rule.last + 1)) == sorted(expected)
    assert all(rule.auto is auto and rule.best_effort is not bool(included) for rule in spec.rules)
    assert all(rule.to_first == rule.first for rule in spec.rules)


@given(PORT, st.integers(0, 100), PORT, st.integers(-1, 1))
def test_a_mapping_keeps_the_order(first: int, more: int, to_first: int, other: int) -> None:
    last, to_last = first + more, to_first + more + other
    text = f"{first}-{last}:{to_first}-{to_last}"
    if other or last > 65535 or to_last > 65535:
        with pytest.raises(PortError):
            parse(text)
        return
    (rule,) = parse(text).rules
    assert (rule.first, rule.last, rule.to_first, rule.to_last) == (first, last, to_first, to_last)
