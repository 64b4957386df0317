"""The OpenAPI document, with the bodies that our own reader (and not FastAPI) takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from steerserve.wire.status import ErrorBody

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import FastAPI
    from pydantic import BaseModel

_REF = "#/components/schemas/{model}"
_GENERATION_ERRORS = {
    400: "The request is wrong; the message says what would be right.",
    413: "The body is over the limit.",
    503: "Loading, stopping or too busy; the header `retry-after` says when to try again.",
}
_FASTAPI_ERRORS = frozenset({"HTTPValidationError", "ValidationError"})
"""What FastAPI documents under 422, which this server never answers."""
_ERRORS = {401: "No key, or one that is not known.", 404: "There is no such thing."}


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Say in a route's documentation that it reads `model`; the schema itself is added by `build_document`."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def stream_response(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation that with `stream: true` it sends events, each of them `chunk`."""
    schema = {"type": "string", "description": f"Lines `data: ` with a {chunk.__name__}, then `data: [DONE]`."}
    return {200: {"content": {"text/event-stream": {"schema": schema}}}} | _documented(_GENERATION_ERRORS)


def job_responses() -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation how a request for a job can be refused."""
    busy = {409: "A job works on the dictionary already, or another server on the folder; `code` says which."}
    return _documented(_GENERATION_ERRORS | busy)


def load_responses() -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation how loading a dictionary can be refused."""
    busy = {409: "A dictionary of that id is being loaded right now."}
    return _documented({status: _GENERATION_ERRORS[status] for status in (400, 413)} | busy)


def reading_responses() -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation how a request that reads texts can be refused."""
    return _documented(_GENERATION_ERRORS)


def vector_responses() -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation how making a vector can be refused."""
    return _documented(_GENERATION_ERRORS | {403: "The key is no admin key.", 409: "There is one of that name."})


def label_responses() -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation how a label can be refused."""
    return _documented({status: _GENERATION_ERRORS[status] for status in (400, 413)})


def preset_responses() -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation how a preset can be refused."""
    errors = {400: "The preset is wrong; the message says where and what would be right.", 413: _GENERATION_ERRORS[413]}
    return {201: {"description": "There was no preset of that name."}, **_documented(errors)}


def preset_body(model: type[BaseModel], yaml_type: str) -> dict[str, Any]:
    """Say in a route's documentation that it reads `model` as YAML, or as JSON."""
    schema = {"schema": {"$ref": _REF.format(model=model.__name__)}}
    return {"requestBody": {"required": True, "content": {yaml_type: schema, "application/json": schema}}}


def text_response(kind: str) -> dict[int | str, dict[str, Any]]:
    """Say in a route's documentation that it gives text of this type too, where the client accepts that."""
    return {200: {"content": {kind: {"schema": {"type": "string"}}}}}


def error_responses() -> dict[int | str, dict[str, Any]]:
    """Give the errors that routes under /v1 have in common."""
    return _documented(_ERRORS)


def _documented(errors: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": text} for status, text in errors.items()}


def install_document(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Make `app` describe the request and chunk bodies `models` too."""

    def build_document() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
            schemas = definitions["$defs"] | document["components"]["schemas"]
            document["components"]["schemas"] = {
                name: schema for name, schema in schemas.items() if name not in _FASTAPI_ERRORS
            }
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                operation["responses"].pop("422", None)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build_document  # type: ignore[method-assign]
