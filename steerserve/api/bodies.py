"""From the arguments of `SteeredModel` to the bodies of requests: plain JSON."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import InvalidRequestError
from steerserve.wire.edits import Edit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.presets.preset import Preset

    Messages = str | Sequence[Mapping[str, Any]]
    """A conversation, or the text of one user message."""
    Steering = str | Edit | Preset | Mapping[str, Any] | Sequence[str | Edit | Preset | Mapping[str, Any]] | None
    """As in a request (docs/steering.md), with `Edit` and `Preset` objects besides."""


def messages_of(messages: Messages) -> list[Mapping[str, Any]]:
    """Return a conversation as a list of messages."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def generation_body(
    steering: Steering,
    features: bool | Mapping[str, Any],  # noqa: FBT001 as the wire's own field
    options: Mapping[str, Any],
    **fields: Any,  # noqa: ANN401 JSON is anything
) -> dict[str, Any]:
    """Build the body of a generating request.

    Raises:
        InvalidRequestError: an argument cannot be written as JSON.
    """
    body = {**fields, **options}
    if steering is not None:
        body["steering"] = steering_of(steering)
    if features:
        body["features"] = features if isinstance(features, bool) else dict(features)
    return plain_json(body)


def steering_of(value: Any) -> Any:  # noqa: ANN401 whatever a request may say, and objects for parts of it
    """Write steering as JSON: edits as their fields, a preset object as its edits."""
    if isinstance(value, Edit):
        return [value.model_dump(mode="json", exclude_unset=True)]
    if hasattr(value, "edits") and not isinstance(value, dict):  # a Preset, whose module need not be loaded here
        return [part for edit in value.edits for part in steering_of(edit)]
    if isinstance(value, (list, tuple)):
        parts = [steering_of(part) for part in value]
        return [item for part in parts for item in (part if isinstance(part, list) else [part])]
    return value


def plain_json(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body as JSON would arrive over HTTP: lists for tuples, and nothing that JSON cannot say.

    Raises:
        InvalidRequestError: it holds something else.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(body, allow_nan=False, default=os.fspath))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"The request cannot be written as JSON: {error}.") from error
    return plain
