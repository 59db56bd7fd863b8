"""The subset of Go templates."""

from __future__ import annotations

from typing import Any

import pytest

from netd.cli.failure import Failure
from netd.cli.template import Template, go_name

PORT = {"id": 1, "host_ip": "", "host_port": 8080, "container_port": 80, "protocol": "tcp", "range": 1}
ROW: dict[str, Any] = {
    "id": "abc",
    "guest_ip": "10.0.2.100",
    "mtu": 1500,
    "offload": True,
    "nothing": None,
    "flows": {"tcp": 2, "udp": 1},
    "ports": [PORT],
    "empty": [],
    "names": ["a", "b"],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.ID}}", "abc"),
        ("{{ .GuestIP }}:{{.MTU}}", "10.0.2.100:1500"),
        ("{{.guest_ip}} {{.GuestIp}}", "10.0.2.100 10.0.2.100"),
        ("{{.Flows.Tcp}}", "2"),
        ("{{.Flows}}", "map[tcp:2 udp:1]"),
        ("{{.Offload}} {{.Nothing}} {{.Names}}", "true <nil> [a b]"),
        ("{{.Ports}}", "0.0.0.0:8080->80/tcp"),
        ("[{{.Empty}}]", "[]"),
        ("{{json .Flows}}", '{"tcp":2,"udp":1}'),
        ("{{json .Ports}}", '[{"id":1,"host_ip":"","host_port":8080,"container_port":80,"protocol":"tcp","range":1}]'),
        ("{{len .Ports}}{{len .ID}}", "13"),
        ("{{range .Ports}}{{.HostPort}};{{end}}{{range .Empty}}x{{end}}", "8080;"),
        ("{{range .Names}}<{{.}}>{{end}}", "<a><b>"),
        (r"{{.ID}}\t{{.MTU}}\n", "abc\t1500\n"),
        ("no fields", "no fields"),
        ("", ""),
    ],
)
def test_renders(template: str, text: str) -> None:
    assert Template(template).render(ROW) == text


@pytest.mark.parametrize(
    "template", ["{{}}", "{{if .ID}}", "{{.ID | upper}}", "{{range .ID}}", "{{end}}", "{{x .ID}}", "{{.}x}}"]
)
def test_is_not_supported(template: str) -> None:
    with pytest.raises(Failure):
        Template(template)


@pytest.mark.parametrize(
    "template", ["{{.Nosuch}}", "{{.ID.X}}", "{{range .ID}}{{end}}", "{{len .MTU}}", "{{json .A.B}}"]
)
def test_does_not_fit(template: str) -> None:
    with pytest.raises(Failure):
        Template(template).render(ROW)


def test_an_unknown_field_names_the_valid_ones() -> None:
    with pytest.raises(Failure) as failure:
        Template("{{.Nosuch}}").render({"host_ip": "", "id": 1})
    assert ".Nosuch" in str(failure.value)
    assert failure.value.hint == "valid fields: .HostIP .ID"


def test_headings() -> None:
    template = Template(r"table {{.HostIP}}\t{{.ContainerPort}}\t{{.ID}}")
    assert template.table
    assert template.heading == ["HOST IP", "CONTAINER PORT", "ID"]
    assert go_name("guest_ip") == "GuestIP"
