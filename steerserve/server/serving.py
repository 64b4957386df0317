"""What both generating routes do alike: start, wait for the first token, count, and fail in the right way."""

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
    from collections.abc import AsyncIterator, Sequence

    from pydantic import BaseModel
    from starlette.requests import Request

    from steerserve.requests.answers.writer import AnswerWriter
    from steerserve.requests.generation import PreparedGeneration
    from steerserve.runtime import Runtime
    from steerserve.server.metrics import Metrics
    from steerserve.server.summary import RequestSummary

logger = logging.getLogger(__name__)


def start_generation(
    runtime: Runtime, prepared: PreparedGeneration, metrics: Metrics, summary: RequestSummary
) -> Generation:
    """Hand a request's samples to the engine.

    Raises:
        QueueFullError: too many wait already.
    """
    generation = Generation(runtime.submit(prepared.requests), RequestObserver(metrics, summary))
    summary.generation_id = prepared.id
    summary.num_prompt_tokens = prepared.num_prompt_tokens
    summary.num_edits = prepared.num_edits
    if prepared.num_edits:
        metrics.count_steered()
    return generation


async def whole_answer(
    request: Request, generation: Generation, writer: AnswerWriter[Any, Any], *, in_thread: bool
) -> Response:
    """Answer once all choices have ended, while the client is there; write in a thread if that takes a while.

    Raises:
        SteerserveError: a choice failed.
        ClientDisconnect: the client went away.
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
    """Answer with a stream once there is something to send, so that an earlier failure has a status.

    Raises:
        SteerserveError: the first event was a failure.
        ClientDisconnect: the client went away.
    """
    settings = runtime.settings.server
    try:
        await unless_disconnected(request, generation.wait_for_first(settings.keep_alive_s))
    except BaseException:
        generation.close()
        raise
    events = _with_end(writer.chunks(_chunk_bytes))
    return GenerationStream(events, generation, keep_alive_s=settings.keep_alive_s, drain_s=settings.drain_s)


def _chunk_bytes(chunks: Sequence[BaseModel]) -> bytes:
    return b"".join(map(event_bytes, chunks))


async def _with_end(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Add the error, where there is one, and the end mark."""
    try:
        async for chunk in chunks:
            yield chunk
    except SteerserveError as error:
        yield event_bytes(error_body(error))
    except Exception:
        logger.exception("a stream failed")
        yield event_bytes(error_body(EngineError("The server failed to finish this answer. Its log says more.")))
    yield DONE
