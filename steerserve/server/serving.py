"""What both generating routes do alike: start, wait for the first token, count, and fail in the right way."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from steerserve.core.errors import EngineError, SteerserveError
from steerserve.requests.running import Generation
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.errors import error_body
from steerserve.server.metrics import RequestObserver
from steerserve.server.sse import DONE, GenerationStream, event_bytes
from steerserve.wire.usage import PromptTokensDetails, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

    from steerserve.engine.request import TokenEvent
    from steerserve.requests.generation import Prepared
    from steerserve.runtime import Runtime
    from steerserve.server.metrics import Metrics
    from steerserve.server.summary import RequestSummary

logger = logging.getLogger(__name__)


def start_generation(runtime: Runtime, prepared: Prepared, metrics: Metrics, summary: RequestSummary) -> Generation:
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


async def whole_results(request: Request, generation: Generation) -> list[TokenEvent]:
    """Wait for all choices, each as one event, while the client is there.

    Raises:
        SteerserveError: a choice failed.
        ClientDisconnect: the client went away.
    """
    with generation:
        return await unless_disconnected(request, generation.results())


async def stream_results(
    request: Request,
    runtime: Runtime,
    generation: Generation,
    chunks: Callable[[], AsyncIterator[bytes]],
) -> GenerationStream:
    """Answer with a stream once there is something to send, so that what fails before has a status.

    Raises:
        SteerserveError: the first thing that came was a failure.
        ClientDisconnect: the client went away.
    """
    settings = runtime.settings.server
    try:
        await unless_disconnected(request, generation.wait_for_first(settings.keep_alive_s))
    except BaseException:
        generation.close()
        raise
    return GenerationStream(
        _with_end(chunks()), generation, keep_alive_s=settings.keep_alive_s, drain_s=settings.drain_s
    )


def usage_of(prepared: Prepared, generation: Generation) -> Usage:
    """Count the tokens so far; a prompt counts once, by its first sample."""
    num_generated = generation.num_generated_tokens
    return Usage(
        prompt_tokens=prepared.num_prompt_tokens,
        completion_tokens=num_generated,
        total_tokens=prepared.num_prompt_tokens + num_generated,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(generation.num_cached_tokens[:: prepared.num_samples])
        ),
    )


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
