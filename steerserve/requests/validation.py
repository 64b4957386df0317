"""From a request's JSON to its schema, or to one error that names the field as `param`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.core.findings import MISSING, explain, show_value, spell_path, type_in_words
from steerserve.core.literals import JSON_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Body = TypeVar("Body", bound=BaseModel)


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
        raise request_error(error.errors(include_url=False), value) from error


def request_error(details: Sequence[Mapping[str, Any]], body: object) -> InvalidRequestError:
    """Return the error about `body`, given what `ValidationError.errors()` lists."""
    finding = explain(details, body, JSON_WORDS)
    param = spell_path(finding.path) or None
    name = f"'{param}'" if param else "the request body"
    if finding.kind == MISSING:
        message = f"Missing required parameter: {name}."
        return InvalidRequestError(message, param=param, code="missing_required_parameter")
    if finding.kind in {"unsupported_value", "unsupported_parameter"}:
        return UnsupportedParameterError(finding.message, param=param, code=finding.kind)
    if finding.kind == "one_or_many" or finding.is_wrong_type:
        got = type_in_words(finding.value, JSON_WORDS)
        message = f"Invalid type for {name}: expected {finding.expected}, but got {got} instead."
        return InvalidRequestError(message, param=param, code="invalid_type")
    if not finding.expected:
        return InvalidRequestError(finding.message, param=param)
    got = show_value(finding.value, JSON_WORDS)
    return InvalidRequestError(f"Invalid value for {name}: must be {finding.expected}, but got {got}.", param=param)
