"""As much of JSON Schema 2020-12 as the API's description uses. A keyword it does not know is an error, not a pass."""

from __future__ import annotations

from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
NOTES = {"title", "description", "default", "format", "$defs"}


def check(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "$") -> None:
    """Raise AssertionError where ``value`` does not fit; every key of an object must be a known property."""
    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                target: Any = root
                for part in rule.removeprefix("#/").split("/"):
                    target = target[part]
                check(value, target, root, where)
            case "type":
                assert isinstance(value, TYPES[rule]), f"{where}: {value!r} is no {rule}"
                assert rule == "boolean" or not isinstance(value, bool), f"{where}: {value!r} is no {rule}"
            case "properties":
                for key, sub in rule.items():
                    if key in value:
                        check(value[key], sub, root, f"{where}.{key}")
                assert set(value) <= set(rule), f"{where}: undescribed {set(value) - set(rule)}"
            case "required":
                assert set(rule) <= set(value), f"{where}: missing {set(rule) - set(value)}"
            case "additionalProperties":
                if isinstance(rule, dict):
                    for key, item in value.items():
                        check(item, rule, root, f"{where}.{key}")
            case "items":
                for number, item in enumerate(value):
                    check(item, rule, root, f"{where}[{number}]")
            case "anyOf":
                problems = []
                for option in rule:
                    try:
                        check(value, option, root, where)
                        break
                    except AssertionError as exc:
                        problems.append(str(exc))
                else:
                    raise AssertionError(f"{where}: none of {problems}")
            case "enum":
                assert value in rule, f"{where}: {value!r} is not one of {rule}"
            case "const":
                assert value == rule, f"{where}: {value!r} is not {rule!r}"
            case "minimum":
                assert value >= rule, f"{where}: {value} < {rule}"
            case "maximum":
                assert value <= rule, f"{where}: {value} > {rule}"
            case "minLength":
                assert len(value) >= rule, where
            case "maxLength" | "maxItems":
                assert len(value) <= rule, where
            case _:
                assert keyword in NOTES, f"{where}: unknown keyword {keyword}"
