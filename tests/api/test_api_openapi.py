"""/v1/openapi.json against the server: what it lists answers as it says, and what answers is listed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netd.api.app import ApiServer
from tests.api.client import Answer, call
from tests.api.schema import check
from tests.standin import Daemon


@pytest_asyncio.fixture
async def socket_path(runtime_dir: Path, api: ApiServer) -> Path:
    return runtime_dir / "api.sock"


@pytest_asyncio.fixture
async def document(socket_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = (await call(socket_path, "GET", "/v1/openapi.json")).json
    return found


def fits(answer: Answer, operation: dict[str, Any], root: dict[str, Any]) -> None:
    """``answer`` is one of the operation's responses: status, media type, body, headers."""
    described = operation["responses"].get(str(answer.status))
    assert described is not None, f"{answer.status} is not described: {answer.body!r}"
    content = described.get("content")
    if content is None:
        assert answer.body == b""
    else:
        media = answer.headers["content-type"].partition(";")[0]
        assert set(content) == {media}
        check(answer.json if media.endswith("json") else answer.body.decode(), content[media]["schema"], root)
    for name in described.get("headers", {}):
        assert name.lower() in answer.headers


async def test_it_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert set(document) <= {"openapi", "info", "servers", "paths", "components"}
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == 14
    references = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(document)))
    assert references == set(document["components"]["schemas"]), "no dangling and no unused schema"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))


async def test_it_lists_what_the_server_routes(document: dict[str, Any], api: ApiServer) -> None:
    served = {(route.method, route.resource.canonical) for route in api._app.router.routes() if route.resource}
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert {row for row in served if row[0] != "HEAD"} == listed


async def test_every_operation_answers_as_described(
    document: dict[str, Any], socket_path: Path, daemon: Daemon, netns_pid: int
) -> None:
    network = {"pid": netns_pid, "name": "web", "ports": [{"container_port": 80}]}
    port = {"container_port": 81, "host_ip": "127.0.0.1"}
    done: set[tuple[str, str]] = set()

    async def act(method: str, path: str, status: int, body: Any = None, query: str = "", **values: str) -> Answer:
        operation = document["paths"][path][method.lower()]
        if body is not None and status < 300:
            check(body, operation["requestBody"]["content"]["application/json"]["schema"], document)
        answer = await call(socket_path, method, path.format(**values) + query, body)
        assert answer.status == status, answer.body
        fits(answer, operation, document)
        if status < 300:
            done.add((method, path))
        return answer

    for path in ("/_ping", "/healthz", "/metrics", "/v1/version", "/v1/info", "/v1/openapi.json", "/v1/networks"):
        await act("GET", path, 200)
    await act("POST", "/v1/networks", 201, network)
    await act("POST", "/v1/networks", 409, network)
    await act("POST", "/v1/networks", 422, {"pid": netns_pid, "what": 1})
    await act("POST", "/v1/networks", 422, {"pid": 4194304})
    assert len((await act("GET", "/v1/networks", 200)).json) == 1
    await act("GET", "/v1/networks", 400, query="?filters=x")
    await act("GET", "/v1/networks", 422, query="?filters=%7B%22a%22:%5B%5D%7D")
    one, ports, each = "/v1/networks/{id}", "/v1/networks/{id}/ports", "/v1/networks/{id}/ports/{port_id}"
    await act("GET", one, 200, id="web")
    await act("GET", one, 404, id="nosuch")
    added = (await act("POST", ports, 201, port, id="web")).json
    await act("POST", ports, 409, {**port, "host_port": added["host_port"]}, id="web")
    await act("POST", ports, 422, {}, id="web")
    assert len((await act("GET", ports, 200, id="web")).json) == 2
    await act("GET", each, 200, id="web", port_id=str(added["id"]))
    await act("GET", each, 404, id="web", port_id="99")
    await act("DELETE", each, 204, id="web", port_id=str(added["id"]), query="?close=true")
    await act("DELETE", each, 404, id="web", port_id=str(added["id"]))
    await act("DELETE", each, 400, id="web", port_id="1", query="?close=maybe")
    await act("DELETE", one, 204, id="web")
    await act("DELETE", one, 404, id="web")
    await act("DELETE", one, 204, id="web", query="?ignore=true")
    daemon.fails = RuntimeError("ours")
    answer = await call(socket_path, "POST", "/v1/networks", {"pid": netns_pid})
    check(answer.json, {"$ref": "#/components/schemas/Problem"}, document)
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    assert done == listed


def test_the_checker_can_fail() -> None:
    root = {"a": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}
    check({"n": 1}, {"$ref": "#/a"}, root)
    for wrong in ({}, {"n": "1"}, {"n": True}, {"n": 1, "m": 2}):
        with pytest.raises(AssertionError):
            check(wrong, {"$ref": "#/a"}, root)
    with pytest.raises(AssertionError, match="unknown keyword"):
        check(1, {"multipleOf": 2}, root)
