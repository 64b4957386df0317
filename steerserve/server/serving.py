"""The common part of all generating routes: starting, counting, streaming, and turning failures into answers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from steerserve.core.errors import EngineError, SteerserveError
from steerserve.requests.running import Generation
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.errors import error_body
from steerserve.server.metrics import RequestObserver
from steerserve.server.sse import DONE, GenerationStream, event_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pydantic import BaseModel
    from starlette.requests import Request

    from steerserve.requests.answers.writer import AnswerWriter
    from steerserve.requests.comparison import PreparedComparison
    from steerserve.requests.generation import PreparedGeneration
    from steerserve.runtime import Runtime
    from steerserve.server.metrics import Metrics
    from steerserve.server.summary import RequestSummary
    from steerserve.wire.status import ErrorBody

logger = logging.getLogger(__name__)


def observe_request(
    prepared: PreparedGeneration | PreparedComparison, metrics: Metrics, summary: RequestSummary
) -> RequestObserver:
    """Count a generating request that the engine has accepted; return the observer of its generation."""
    summary.generation_id = prepared.id
    summary.num_prompt_tokens = prepared.num_prompt_tokens
    summary.num_edits = prepared.num_edits
    if prepared.num_edits:
        metrics.count_steered()
    return RequestObserver(metrics, summary)


def start_generation(
    runtime: Runtime, prepared: PreparedGeneration, metrics: Metrics, summary: RequestSummary
) -> Generation:
    """Submit the samples of a request to the engine.

    Raises:
        QueueFullError: the engine's queue is full.
    """
    streams = runtime.submit(prepared.requests)
    return Generation(streams, observe_request(prepared, metrics, summary))


async def whole_answer(
    request: Request, generation: Generation, writer: AnswerWriter[Any, Any], *, in_thread: bool
) -> Response:
    """Answer when all choices have ended; with `in_thread` the answer, which is long, is written in a thread.

    Raises:
        SteerserveError: a choice failed.
        ClientDisconnect: the client disconnected.
    """
    with generation:
        events = await unless_disconnected(request, generation.results())

    def write() -> str:
        written: str = writer.whole(events).model_dump_json()
        return written

    return Response(await asyncio.to_thread(write) if in_thread else write(), media_type="application/json")


async def stream_answer(
    request: Request, runtime: Runtime, generation: Generation, writer: AnswerWriter[Any, Any]
) -> GenerationStream:
    """Answer with a stream of chunks; see `stream_events`."""
    return await stream_events(request, runtime, generation, writer.chunks(_chunk_bytes), event_bytes)


async def stream_events(
    request: Request,
    runtime: Runtime,
    generation: Generation,
    events: AsyncIterator[bytes],
    write_error: Callable[[ErrorBody], bytes],
) -> GenerationStream:
    """Answer with a stream once the first event is ready, so that an earlier failure is answered with its status.

    Raises:
        SteerserveError: the first event was a failure.
        ClientDisconnect: the client disconnected.
    """
    settings = runtime.settings.server
    try:
        await unless_disconnected(request, generation.wait_for_first(settings.keep_alive_s))
    except BaseException:
        generation.close()
        raise
    events = _with_end(events, write_error)
    return GenerationStream(events, generation, keep_alive_s=settings.keep_alive_s, drain_s=settings.drain_s)


def _chunk_bytes(chunks: Sequence[BaseModel]) -> bytes:
    return b"".join(map(event_bytes, chunks))


async def _with_end(events: AsyncIterator[bytes], write_error: Callable[[ErrorBody], bytes]) -> AsyncIterator[bytes]:
    """Add the end mark to the events, after an error if there is one."""
    try:
        async for event in events:
            yield event
    except SteerserveError as error:
        yield write_error(error_body(error))
    except Exception:
        logger.exception("a stream failed")
        yield write_error(error_body(EngineError("The server failed to finish this answer. Its log says more.")))
    yield DONE
