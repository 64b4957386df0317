"""What is wrong with a preset's data, as one sentence with the place of the value that it is about."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from pydantic import BaseModel

from steerserve.presets.schema import NAME_RULE, PresetFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import ErrorDetails

    from steerserve.core.yaml_document import YamlDocument, YamlPath

_WANTED = {
    "string_type": "text",
    "string_unicode": "text of whole characters",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "greater than {gt}",
    "less_than": "less than {lt}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": NAME_RULE,  # no other text has a pattern
}
_OWN = frozenset({"edit", "preset", "value_error"})
"""Complaints of validators, which say it all themselves."""
_SHOWN = 60


class Problem(NamedTuple):
    """One thing that is wrong."""

    path: YamlPath
    """Of the value; the file may not have it."""
    sentence: str
    """Without the place and the final stop."""


def find_null(data: object, path: YamlPath = ()) -> Problem | None:
    """Return the first key whose value is missing: `scale:` with nothing behind it is a mistake, not a default."""
    if data is None:
        return Problem(path, f"{spelled(path)} has no value; give it one, or take the line out")
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return next((found for key, part in parts if (found := find_null(part, (*path, key))) is not None), None)


def find_problem(details: Sequence[ErrorDetails], document: YamlDocument) -> Problem:
    """Return what to tell of what pydantic found: a key that is unknown, or else what comes first in the file."""
    located = [(_data_path(detail, document.data), detail) for detail in details]
    # Of a union's branches the one that got furthest is what the person meant.
    paths = {path for path, _ in located}
    deepest = [
        (path, detail)
        for path, detail in located
        if not any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    ]
    path, first = min(deepest, key=lambda pair: (pair[1]["type"] != "extra_forbidden", _place(pair[0], document)))
    if first["type"] == "extra_forbidden":
        return Problem(path, _unknown(path))
    # One that has the right type and contradicts itself got further than the union's other members.
    first = next((detail for other, detail in deepest if other == path and detail["type"] in _OWN), first)
    name = spelled(path) or "a key"
    if first["type"] == "missing":
        return Problem(path, f"{name} is missing")
    if first["type"] in _OWN:
        context: dict[str, Any] = first.get("ctx", {})
        field, said = context.get("field"), str(context.get("problem", first["msg"])).removeprefix("Value error, ")
        path = path if field is None else (*path, field)
        return Problem(path, f"{spelled(path)}: {said}" if path else said)
    # A union gives one complaint for each of its members, all about the same value.
    wanted = dict.fromkeys(_wanted(detail) for other, detail in deepest if other == path)
    value = first.get("input")
    return Problem(path, f"{name} must be {' or '.join(wanted)}, not {_shown(value)}{_hint(value, first)}")


def spelled(path: YamlPath) -> str:
    """Write a path as `edits[0].scale`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in path).removeprefix(".")


def _data_path(detail: ErrorDetails, data: object) -> YamlPath:
    """Follow a complaint's place through the data, leaving out the names of union branches."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if not isinstance(data, dict | list):
            break
        is_there = part in data if isinstance(data, dict) else isinstance(part, int) and part < len(data)
        if is_there:
            data = cast("Any", data)[part]
            path.append(part)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return tuple(path)


def _place(path: YamlPath, document: YamlDocument) -> tuple[int, int]:
    while path not in document.marks and path:
        path = path[:-1]
    return document.marks[path]


def _wanted(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind]
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**{key: _plain(value) for key, value in context.items()})
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _hint(value: object, detail: ErrorDetails) -> str:
    if not isinstance(value, str):
        return ""
    if detail["type"] == "literal_error":
        offered = [word.strip("' ") for word in str(detail["ctx"]["expected"]).replace(" or ", ",").split(",")]
        near = difflib.get_close_matches(value, offered, n=1)
        return f"; did you mean {near[0]}?" if near else ""
    if detail["type"] in {"int_type", "float_type"}:
        try:
            number = float(value)
        except ValueError:
            return ""
        if math.isfinite(number):  # quoted, or 1e3, which YAML takes for text
            return f"; write {int(number) if number.is_integer() and abs(number) < _INT else number}, without quotes"
    return ""


_INT = 1e15


def _unknown(path: YamlPath) -> str:
    known = list(dict.fromkeys(name for model in _models_at(path[:-1]) for name in model.model_fields))
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{spelled(path)} is not known; {hint}"


def _models_at(path: YamlPath) -> list[type[BaseModel]]:
    """Return the models that the value at `path` may be."""
    models: list[type[BaseModel]] = [PresetFile]
    for part in path:
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)]
    return models


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
