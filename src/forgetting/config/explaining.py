"""Pydantic's errors as lines for a user: the field, what came, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import did_you_mean

KINDS = {
    "int_type": "give a whole number",
    "float_type": "give a number",
    "bool_type": "give true or false",
    "string_type": "give a string",
    "tuple_type": "give a list",
    "dict_type": "give fields by name",
    "model_type": "give fields by name",
}
"""What to give when a value has the wrong type, by pydantic's name of the error."""


def explain(error: ValidationError, model: type[BaseModel], where: str) -> list[str]:
    """Pydantic's errors as lines `where: field: got X; what is allowed`; several go under one heading, one per line."""
    # a list with a wrong item is also reported as too short
    items = [item for item in error.errors() if not (item["type"] == "too_short" and item["input"])]
    lines = [_explained(item, model) for item in items]
    if len(lines) == 1:
        return [f"{where}: {lines[0]}"]
    return [f"{where}: {len(lines)} fields are wrong", *(f"  {line}" for line in lines)]


def _explained(item: ErrorDetails, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in item["loc"] if not str(part).startswith("["))
    came = repr(item["input"])
    came = came if len(came) <= 60 else came[:57] + "..."
    match item["type"]:
        case "extra_forbidden":
            said = f"unknown field; {did_you_mean(str(item['loc'][-1]), _fields_at(model, item['loc'][:-1]))}"
        case "missing":
            said = "required, but missing"
        case "value_error":
            said = str(item["ctx"]["error"])
        case "too_short" if isinstance(item["input"], list | tuple | dict):
            said = f"got {came}; give at least one"
        case "string_pattern_mismatch":
            said = f"got {came}; allowed: letters, digits, '.', '_' and '-', at most 64 characters"
        case "literal_error":
            choices = item["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
            said = f"got {came}; {did_you_mean(str(item['input']), choices)}"
        case kind if kind in KINDS:
            said = f"got {came}; {KINDS[kind]}"
        case _:
            said = f"got {came}; {item['msg'][0].lower()}{item['msg'][1:]}"
    return f"{path}: {said}" if path else said


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """The field names allowed at a path inside `model`, for suggestions."""
    schema: dict[str, Any] = model.model_json_schema()
    node = schema
    for part in path:
        node = _resolve(node, schema)
        if "oneOf" in node:  # a text or a probe; the tag says which
            kinds = [_resolve(one, schema) for one in node["oneOf"]]
            probe = str(part) == "[probe]"
            node = next((kind for kind in kinds if ("probe" in kind["properties"]) == probe), {})
            continue
        properties = node.get("properties", {})
        patterns = list(node.get("patternProperties", {}).values())
        node = properties.get(part) or node.get("items") or (patterns[0] if patterns else {})
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        else:  # an optional section: take the choice that is not null
            node = next((choice for choice in node["anyOf"] if "$ref" in choice), {})
    return node
