"""From pydantic's findings in `steering` to one refusal that says what would be right, in JSON's words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import InvalidRequestError
from steerserve.core.names import did_you_mean, short_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

MISSING = "missing_required_parameter"
_WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "too_long": "a list of at most {max_length}",
}
_UNION = "vector"
"""The field that is a name or an object: behind it pydantic puts a branch's name, which is no key."""
_MAX_DIGITS = 20
_MAX_CHARS = 60


def refusal(error: ValidationError, models: Mapping[str, type[BaseModel]]) -> InvalidRequestError:
    """Say what is wrong; of several things, the one that lies deepest.

    Args:
        error: What pydantic found.
        models: What the objects are, by the key under which they (or lists of them) stand.
    """
    findings = [found for found in error.errors(include_url=False) if not _is_other_branch(found)]
    found = max(findings, key=lambda one: len(one["loc"]))
    path = _path(found["loc"])
    param = _spelled(path)
    kind, context = found["type"], found.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path, models)
    if kind == "missing":
        return InvalidRequestError(f"{param} is missing.", param=param, code=MISSING)
    if kind == "edit":
        param = param if context["field"] is None else f"{param}.{context['field']}"
        code = MISSING if context["is_missing"] else None
        return InvalidRequestError(f"{param}: {context['problem']}.", param=param, code=code)
    wanted = _wanted(found)
    if path[-1:] == (_UNION,) and kind in _WANTED:
        wanted = "a stored vector's name or an object"
    code = "invalid_type" if kind in _WANTED else None
    return InvalidRequestError(f"{param} must be {wanted}, not {shown(found['input'])}.", param=param, code=code)


def shown(value: object) -> str:
    """Write what a client sent as JSON has it, and briefly."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return repr(short_name(value, _MAX_CHARS))
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "a number that is not finite"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**_MAX_DIGITS else "a number of many digits"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def _is_other_branch(found: ErrorDetails) -> bool:
    """Tell whether a finding only says that an object is no name."""
    return found["type"] == "string_type" and found["loc"][-2:-1] == (_UNION,) and isinstance(found["input"], dict)


def _path(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    return tuple(part for place, part in enumerate(loc) if not place or loc[place - 1] != _UNION)


def _spelled(path: Sequence[str | int]) -> str:
    """Write a path as `steering.edits[0].scale`."""
    return "steering" + "".join(f"[{part}]" if isinstance(part, int) else f".{short_name(part)}" for part in path)


def _wanted(found: ErrorDetails) -> str:
    kind, context = found["type"], found.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind]
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**{key: _plain(value) for key, value in context.items()})
    return found["msg"].removeprefix("Input should be ")


def _plain(value: Any) -> object:  # noqa: ANN401 a bound
    """Write a bound as a client does: 2 and not 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unknown_key(path: Sequence[str | int], models: Mapping[str, type[BaseModel]]) -> InvalidRequestError:
    *around, key = path
    param, key = _spelled(path), str(key)
    owner = next((part for part in reversed(around) if isinstance(part, str)), "steering")
    if owner == "steering" and key in models["edits"].model_fields:
        message = f'{param}: an edit goes into a list, such as "steering": [{{"feature": 17, "scale": 8}}].'
        return InvalidRequestError(message, param=param, code="unknown_parameter")
    known = models[owner].model_fields
    message = f"{param} is not known.{did_you_mean(key, known)} Known here: {', '.join(known)}."
    return InvalidRequestError(message, param=param, code="unknown_parameter")
