"""Reading a JSON body: within the size limit, as strict JSON, into a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import jiter
from fastapi import Request

from steerserve.core.errors import BodyTooLargeError, InvalidRequestError
from steerserve.requests.validation import parse_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.wire.base import RequestModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Model = TypeVar("Model", bound=RequestModel)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DRAIN_FACTOR = 16
"""A body over the limit is read and discarded, up to this multiple of the limit, before the answer is sent."""


def json_body(model: type[Model]) -> Callable[..., Awaitable[Model]]:
    """Return the dependency that reads the request's body as `model`.

    This is not a FastAPI body parameter: FastAPI reads those before it checks keys, without a limit, and accepts NaN.
    """

    async def read(request: Request, runtime: RuntimeDep) -> Model:
        _check_content_type(request)
        value = parse_json(await read_body(request, runtime.settings.server.max_body_bytes))
        return parse_body(model, value)

    return read


def parse_json(body: bytes) -> Any:  # noqa: ANN401 JSON is anything
    """Parse strict JSON: finite numbers, whole characters, no key twice, not nested over 200 levels.

    Raises:
        InvalidRequestError: the body is not strict JSON; the message says where.
    """
    try:
        return jiter.from_json(body.removeprefix(_BYTE_ORDER_MARK), allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}.") from error


def _check_content_type(request: Request) -> None:
    # Web pages can make a browser send other types to any server; JSON needs the server's permission (CORS).
    sent = request.headers.get("content-type", "")
    kind = content_type_of(request)
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        got = f"not {sent[:100]!r}" if sent else "which is missing"
        message = f"The request body must be JSON with the header 'Content-Type: application/json', {got}."
        raise InvalidRequestError(message)


def content_type_of(request: Request) -> str:
    """Return the body's content type, without parameters such as the character set."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body, counting the bytes that arrive, because a chunked body announces no length.

    Some of a body that is too large is read too: a client that is still sending would not see the answer.

    Raises:
        BodyTooLargeError: the body is over the limit.
    """
    announced = request.headers.get("content-length", "0")
    is_over = (
        announced.isascii() and announced.isdigit() and (len(announced) > len(str(limit)) or int(announced) > limit)
    )
    if is_over and request.headers.get("expect"):
        raise _too_large(limit)
    body, num_read = bytearray(), 0
    async for chunk in request.stream():
        num_read += len(chunk)
        is_over = is_over or num_read > limit
        if not is_over:
            body += chunk
        elif num_read > _DRAIN_FACTOR * limit:
            break
    if is_over:
        raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The request body is over this server's limit of {limit} bytes. Send a smaller one.")
