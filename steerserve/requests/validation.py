"""From pydantic's findings to one sentence that stands alone, with the path of the field as `param`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.core.names import short_name
from steerserve.wire.unsupported import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Body = TypeVar("Body", bound=BaseModel)

_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
    "list_type": "an array",
    "tuple_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_REASONS = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be greater than {gt}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "int_parsing_size": "is too large",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
}
_KINDS = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array", dict: "an object"}


def parse_body(model: type[Body], value: object) -> Body:
    """Check a JSON value against the schema of a request.

    Raises:
        InvalidRequestError: the value does not fit; `param` is the path of the field.
    """
    if not isinstance(value, dict):
        message = 'The request body must be a JSON object, such as {"model": ...}.'
        raise InvalidRequestError(message, code="invalid_type")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise as_request_error(error.errors(include_url=False), value) from error


def as_request_error(findings: Sequence[Mapping[str, Any]], body: object) -> InvalidRequestError:
    """Say what is wrong with `body`, given what `ValidationError.errors()` lists.

    One finding is told: the deepest, since in a union the branch that got furthest is what the client meant.
    """
    located = [(_path(finding, body), finding) for finding in findings]
    path, finding = max(located, key=lambda pair: len(pair[0]))
    param = _spelled(path) or None
    name = f"'{param}'" if param else "the request body"
    kind, value, context = finding["type"], finding.get("input"), _plain(finding.get("ctx", {}))
    if kind == "missing":
        return InvalidRequestError(
            f"Missing required parameter: {name}.", param=param, code="missing_required_parameter"
        )
    if kind in {"unsupported_value", "unsupported_parameter"}:
        return UnsupportedParameterError(f"Not supported in {name}: {finding['msg']}.", param=param, code=kind)
    if kind == "one_or_many" or kind in _EXPECTED:
        expected = _EXPECTED.get(kind) or context["expected"]
        got = "null" if value is None else _KINDS.get(type(value), "something else")
        message = f"Invalid type for {name}: expected {expected}, but got {got} instead."
        return InvalidRequestError(message, param=param, code="invalid_type")
    reason = _REASONS[kind].format(**context) if kind in _REASONS else finding["msg"]
    if kind == "too_short" and context["min_length"] == 1:
        reason = "must not be empty"
    got = "" if kind in {"finite_number", "too_short", "too_long"} else f", but got {shown(value)}"
    return InvalidRequestError(f"Invalid value for {name}: {reason}{got}.", param=param)


def _plain(context: Mapping[str, Any]) -> dict[str, Any]:
    """Write bounds of numbers as a client writes them: 2 and not 2.0."""
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in context.items()
    }


def _path(finding: Mapping[str, Any], body: object) -> tuple[str | int, ...]:
    """Follow the finding's place through `body`, leaving out the names of union branches, which are no keys."""
    is_missing = finding["type"] == "missing"
    path: list[str | int] = []
    place = body
    for part in finding["loc"][:-1] if is_missing else finding["loc"]:
        if (isinstance(place, dict) and part in place) or (
            isinstance(place, list) and isinstance(part, int) and part < len(place)
        ):
            place = place[part]
            path.append(part)
    return (*path, finding["loc"][-1]) if is_missing else tuple(path)


def _spelled(path: Sequence[str | int]) -> str:
    """Write a path as `messages[0].content`."""
    spelled = (f"[{part}]" if isinstance(part, int) else f".{short_name(part)}" for part in path)
    return "".join(spelled).removeprefix(".")
