"""`POST /admin/train`, `POST /admin/interpret` and the routes under `/admin/jobs`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import anyio
from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from steerserve.core.errors import UnavailableError
from steerserve.core.literals import JobState
from steerserve.requests import interpretation, training
from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.errors import error_body
from steerserve.server.keys import require_admin
from steerserve.server.openapi import GENERATION_ERRORS, error_responses, request_body, stream_response
from steerserve.server.sse import DONE, EventStream, event_bytes, line_bytes
from steerserve.wire.jobs import InterpretRequest, JobEventObject, JobList, JobObject, TrainRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from steerserve.jobs.job import Job
    from steerserve.runtime import Runtime

_POLL_S = 0.25
_MAX_LISTED = 1000
JobId = Annotated[str, Path(description="Id of the job, as `/admin/jobs` lists it.", max_length=200)]
_RESPONSES = error_responses(
    *GENERATION_ERRORS,
    status_409="Another job works on the dictionary, or another server on the folder; `code` says which.",
)

router = APIRouter(tags=["Jobs"], dependencies=[Depends(require_admin)])


@router.post(
    "/admin/train",
    status_code=202,
    response_model=JobObject,
    responses=_RESPONSES,
    openapi_extra=request_body(TrainRequest),
)
async def start_training(
    body: Annotated[TrainRequest, Depends(json_body(TrainRequest))], runtime: RuntimeDep
) -> Response:
    """Start a job that trains dictionaries on the served model while the server generates."""
    return _accepted(await runtime.job_calls.run(training.start_training, body, runtime, runtime.jobs))


@router.post(
    "/admin/interpret",
    status_code=202,
    response_model=JobObject,
    responses=_RESPONSES,
    openapi_extra=request_body(InterpretRequest),
)
async def start_interpreting(
    body: Annotated[InterpretRequest, Depends(json_body(InterpretRequest))], runtime: RuntimeDep
) -> Response:
    """Start a job that interprets dictionaries while the server generates."""
    return _accepted(await runtime.job_calls.run(interpretation.start_interpretation, body, runtime, runtime.jobs))


@router.get("/admin/jobs")
async def list_jobs(
    runtime: RuntimeDep,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_LISTED, description="Largest number of jobs to return.")] = 100,
) -> JobList:
    """List jobs, the newest first, without the reports in their results."""
    jobs = await runtime.job_calls.run(runtime.jobs.newest, limit + 1, state)
    return JobList(data=[_listed(job) for job in jobs[:limit]], has_more=len(jobs) > limit)


@router.get("/admin/jobs/{job_id}")
async def get_job(job_id: JobId, runtime: RuntimeDep) -> JobObject:
    """Return one job with the reports in its result."""
    return JobObject(**(await runtime.job_calls.run(runtime.jobs.find, job_id)).as_json())


@router.delete("/admin/jobs/{job_id}")
async def cancel_job(job_id: JobId, runtime: RuntimeDep) -> JobObject:
    """Cancel a job. A running job is `running` until it has saved a checkpoint; an ended job stays as it is."""
    return JobObject(**(await runtime.job_calls.run(runtime.jobs.cancel, job_id)).as_json())


@router.get(
    "/admin/jobs/{job_id}/events",
    response_model=JobEventObject,
    responses=stream_response(JobEventObject),
)
async def follow_job(
    job_id: JobId,
    runtime: RuntimeDep,
    after: Annotated[int, Query(ge=0, le=2**62, description="Only events with a larger `seq`.")] = 0,
) -> EventStream:
    """Stream a job's events, the past ones first, until the job has ended."""
    await runtime.job_calls.run(runtime.jobs.find, job_id)
    settings = runtime.settings.server
    stopping = anyio.Event()
    return EventStream(
        _events(runtime, job_id, after, stopping),
        stopping,
        keep_alive_s=settings.keep_alive_s,
        drain_s=settings.drain_s,
    )


def _listed(job: Job) -> JobObject:
    """Return a job without the reports in its result, which are many megabytes for a thousand jobs."""
    fields = job.as_json()
    if fields["result"] is not None and "dictionaries" in fields["result"]:
        short = [
            {name: value for name, value in dictionary.items() if name != "report"}
            for dictionary in fields["result"]["dictionaries"]
        ]
        fields["result"] = {**fields["result"], "dictionaries": short}
    return JobObject(**fields)


def _accepted(job: Job) -> Response:
    headers = {"location": f"/admin/jobs/{job.id}"}
    content = JobObject(**job.as_json()).model_dump_json()
    return Response(content, 202, headers, media_type="application/json")


async def _events(runtime: Runtime, job_id: str, after: int, stopping: anyio.Event) -> AsyncIterator[bytes]:
    while not stopping.is_set():
        # In this order, an event that arrives between the two calls is sent before the end.
        has_ended = (await runtime.job_calls.run(runtime.jobs.find, job_id)).has_ended
        events = await runtime.job_calls.run(runtime.jobs.events, job_id, after)
        if events:
            after = events[-1].seq
            yield b"".join(line_bytes(json.dumps(event.as_json())) for event in events)
        elif has_ended:
            break
        else:
            with anyio.move_on_after(_POLL_S):
                await stopping.wait()
    else:
        error = UnavailableError("The server stopped. The job continues when the server is back; follow it again then.")
        yield event_bytes(error_body(error))
    yield DONE
