"""The OpenAPI document. Request bodies are added to it here, because our own reader and not FastAPI takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from steerserve.wire.status import ErrorBody

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import FastAPI
    from pydantic import BaseModel

    Responses = dict[int | str, dict[str, Any]]

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request is wrong; the message says what would be right.",
    401: "The key is missing or unknown.",
    403: "The key is not an admin key.",
    404: "What the request names does not exist.",
    413: "The body is larger than the limit.",
    503: "The server is loading, stopping or too busy; the header `retry-after` says when to try again.",
}
GENERATION_ERRORS = (400, 413, 503)
"""Statuses with which routes that use the model may refuse a request."""
_FASTAPI_ERRORS = frozenset({"HTTPValidationError", "ValidationError"})
"""Components that FastAPI documents for status 422, which this server never answers."""


def error_responses(*statuses: int, **descriptions: str) -> Responses:
    """Document the errors of a route; `status_409="..."` adds one with a description of its own."""
    errors = {status: _ERRORS[status] for status in statuses}
    errors |= {int(name.removeprefix("status_")): text for name, text in descriptions.items()}
    return {status: {"model": ErrorBody, "description": text} for status, text in errors.items()}


def text_response(media_type: str, description: str | None = None) -> Responses:
    """Document that a route may also answer with text of this type."""
    schema = {"type": "string"} | ({"description": description} if description is not None else {})
    return {200: {"content": {media_type: {"schema": schema}}}}


def stream_response(chunk: type[BaseModel]) -> Responses:
    """Document that a route may answer with a stream of events, each of them a `chunk`, and the errors of the route."""
    description = f"Lines `data: ` with a {chunk.__name__}, then `data: [DONE]`."
    return text_response("text/event-stream", description) | error_responses(*GENERATION_ERRORS)


def request_body(model: type[BaseModel], *media_types: str) -> dict[str, Any]:
    """Document that a route reads `model`, as JSON or as one of `media_types`; `install_document` adds its schema."""
    content = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    return {"requestBody": {"required": True, "content": dict.fromkeys((*media_types, "application/json"), content)}}


def install_document(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Make the document of `app` include `models`: the bodies of requests, and the chunks of streams."""

    def build_document() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
            schemas: Mapping[str, Any] = definitions["$defs"] | document["components"]["schemas"]
            document["components"]["schemas"] = {
                name: schema for name, schema in schemas.items() if name not in _FASTAPI_ERRORS
            }
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                operation["responses"].pop("422", None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build_document  # type: ignore[method-assign]
