"""From errors to HTTP answers: the only table of statuses by error class, and OpenAI's error object."""

from __future__ import annotations

import http
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from steerserve.core import errors
from steerserve.requests.validation import request_error
from steerserve.wire.status import ErrorBody, ErrorDetail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.requests import Request

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

_STATUSES: Mapping[type[errors.SteerserveError], tuple[int, str]] = {
    errors.InvalidRequestError: (400, INVALID_REQUEST),
    errors.AuthenticationError: (401, "authentication_error"),
    errors.PermissionDeniedError: (403, "permission_error"),
    errors.ModelNotFoundError: (404, INVALID_REQUEST),
    errors.NotFoundError: (404, INVALID_REQUEST),
    errors.ConflictError: (409, INVALID_REQUEST),
    errors.DictionarySourceError: (400, INVALID_REQUEST),
    errors.VectorError: (400, INVALID_REQUEST),
    errors.PresetError: (400, INVALID_REQUEST),
    errors.BodyTooLargeError: (413, INVALID_REQUEST),
    errors.QueueFullError: (503, SERVER_ERROR),
    errors.EngineError: (500, SERVER_ERROR),
    errors.SteerserveError: (500, SERVER_ERROR),
}
"""Status and type of error by class; a class without an entry has that of its nearest base class."""


def install_error_handlers(app: FastAPI) -> None:
    """Make `app` answer every error with an OpenAI error object."""
    app.add_exception_handler(errors.SteerserveError, _answer_own_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)


def error_body(error: errors.SteerserveError) -> ErrorBody:
    """Write `error` as OpenAI's error object, always with all four keys."""
    _, kind = _status_of(error)
    return ErrorBody(error=ErrorDetail(message=error.message, type=kind, param=error.param, code=error.code))


def error_response(error: errors.SteerserveError) -> Response:
    """Return the answer to `error`, with its status, headers and body."""
    status, _ = _status_of(error)
    return _response(status, error_body(error), _headers(error))


def internal_error_response() -> Response:
    """Return the answer to an unexpected error, which reveals nothing about the error."""
    message = "The server failed to answer this request because of an internal error. Its log says more."
    return _response(500, ErrorBody(error=ErrorDetail(message=message, type=SERVER_ERROR, param=None, code=None)))


def _status_of(error: errors.SteerserveError) -> tuple[int, str]:
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)


def _headers(error: errors.SteerserveError) -> dict[str, str]:
    if isinstance(error, errors.QueueFullError):
        return {"retry-after": str(error.retry_after_s), "retry-after-ms": str(1000 * error.retry_after_s)}
    if isinstance(error, errors.AuthenticationError):
        return {"www-authenticate": "Bearer"}
    return {}


def _response(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


async def _answer_own_error(_request: Request, error: Exception) -> Response:
    return error_response(error) if isinstance(error, errors.SteerserveError) else internal_error_response()


async def _answer_validation_error(_request: Request, error: Exception) -> Response:
    """Answer to an invalid query or path parameter, which FastAPI refused; bodies are checked in `body.py`."""
    details = error.errors() if isinstance(error, RequestValidationError) else []
    bare = [{**detail, "loc": detail["loc"][1:]} for detail in details]
    return error_response(request_error(bare, {part: None for detail in bare for part in detail["loc"]}))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else http.HTTPStatus.INTERNAL_SERVER_ERROR
    headers = error.headers if isinstance(error, HTTPException) else None
    where = f"{request.method} {request.url.path[:200]}"
    if status == http.HTTPStatus.NOT_FOUND:
        message = f"Unknown request URL: {where}. The routes are listed in /openapi.json."
        code = "unknown_url"
    elif status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods_of(request))
        message = f"Not allowed: {where}. This URL takes {allowed}."
        headers = {**(headers or {}), "Allow": allowed}
        code = "method_not_supported"
    else:
        message, code = http.HTTPStatus(status).phrase, None
    kind = INVALID_REQUEST if status < http.HTTPStatus.INTERNAL_SERVER_ERROR else SERVER_ERROR
    body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=None, code=code))
    return _response(status, body, headers)


def _methods_of(request: Request) -> list[str]:
    """Return the methods of a URL; Starlette's own answer names only those of the first route of the path."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    routes = request.app.routes
    return [name for name in _METHODS if any(route.matches(scopes[name])[0] is Match.FULL for route in routes)]
