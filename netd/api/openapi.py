"""The OpenAPI 3.1 document, made from the route table and the models: it says what the server does, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from netd.api.models import Problem

if TYPE_CHECKING:
    from pydantic import BaseModel

    from netd.api.routes import Route

_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The document as plain data. ``version`` is netd's."""
    routes = list(routes)
    wanted: dict[type[BaseModel], JsonSchemaMode] = {Problem: "serialization"}
    for route in routes:
        if (model := _model(route.reply)) is not None:
            wanted[model] = "serialization"
        if route.body is not None:
            wanted[route.body] = "validation"
    _, definitions = models_json_schema(list(wanted.items()), ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "netd",
            "version": version,
            "summary": "Networks of rootless containers",
            "description": "Served on a Unix socket: curl --unix-socket $XDG_RUNTIME_DIR/netd/api.sock http://netd/v1/info",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://netd"}],
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": p.name, "in": "query", "description": p.description, "schema": {"type": p.type}} for p in route.query
    ]
    success: dict[str, Any] = {"description": HTTPStatus(route.status).phrase}
    if route.reply is not None:
        media = route.reply if isinstance(route.reply, str) else "application/json"
        success["content"] = {media: {"schema": _schema(route.reply)}}
    if route.status == HTTPStatus.CREATED:
        success["headers"] = {"Location": {"required": True, "schema": {"type": "string", "format": "uri-reference"}}}
    responses: dict[str, Any] = {str(route.status): success}
    for status in route.problems:
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": _PROBLEM}
    responses["default"] = {"description": "Any other problem", "content": _PROBLEM}
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(route.body)}}}
    return operation


def _model(reply: Any) -> type[BaseModel] | None:
    if reply is None or isinstance(reply, str):
        return None
    model: type[BaseModel] = (get_args(reply) or (reply,))[0]
    return model


def _schema(reply: Any) -> dict[str, Any]:
    if isinstance(reply, str):
        return {"type": "object"} if reply == "application/json" else {"type": "string"}
    model = _model(reply)
    assert model is not None
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"type": "array", "items": reference} if get_args(reply) else reference
