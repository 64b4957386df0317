"""`/v1/vectors`: steering vectors, made from two sets of texts and stored under a name."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from steerserve.contrast.difference import difference_of_means
from steerserve.contrast.text_sets import read_text_sets
from steerserve.core.errors import ConflictError, InvalidRequestError
from steerserve.server.body import json_body
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.disconnect import unless_disconnected
from steerserve.server.keys import require_admin, require_inference
from steerserve.server.openapi import GENERATION_ERRORS, error_responses, request_body
from steerserve.steering.lookups import StoredVector
from steerserve.wire.vectors import (
    CreateVectorRequest,
    DeletedVector,
    VectorLayer,
    VectorList,
    VectorObject,
)

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

VectorName = Annotated[str, Path(description="Name of the vector, as `/v1/vectors` lists it.")]
_METHOD = "difference of means"

router = APIRouter(tags=["Features"], dependencies=[Depends(require_inference)])


@router.post(
    "/v1/vectors",
    status_code=201,
    responses=error_responses(*GENERATION_ERRORS, 403, status_409="A vector of that name exists."),
    openapi_extra=request_body(CreateVectorRequest),
    dependencies=[Depends(require_admin)],
)
async def create_vector(
    request: Request, body: Annotated[CreateVectorRequest, Depends(json_body(CreateVectorRequest))], runtime: RuntimeDep
) -> VectorObject:
    """Store a vector: the mean activation of the positive texts less that of the negative texts, at a hook point."""
    runtime.check_ready()
    runtime.check_plain_model(body.model)
    hook_name, median_norm = _hook_point(runtime, body.hook)
    if not body.replace and body.name in await asyncio.to_thread(runtime.vectors.names):
        message = f"A vector {body.name!r} exists already. Choose another name, or send 'replace': true."
        raise ConflictError(message, param="name", code="vector_exists")
    sets = await asyncio.to_thread(
        read_text_sets, runtime.tokenizer, body.positive, body.negative, runtime.context_length
    )
    work = difference_of_means(runtime.engine, hook_name, median_norm, sets, body.pooling)
    difference = await unless_disconnected(request, work)
    vector = StoredVector(
        name=body.name,
        layers={hook_name: difference.values},
        model=runtime.model_id,
        method=_METHOD,
        created=time.time(),
        notes={
            "pooling": body.pooling,
            "num_positive": str(sets.num_positive),
            "num_negative": str(len(sets.rows) - sets.num_positive),
            "held_out_auc": f"{difference.held_out_auc:.3f}",
        },
    )
    await asyncio.to_thread(runtime.vectors.put, vector, replace=body.replace)
    return _object(runtime, await asyncio.to_thread(runtime.vectors.find, body.name))


@router.get("/v1/vectors")
async def list_vectors(runtime: RuntimeDep) -> VectorList:
    """List the stored vectors, which edits can name."""
    vectors = await asyncio.to_thread(runtime.vectors.all)
    return VectorList(data=[_object(runtime, vector) for vector in vectors])


@router.get("/v1/vectors/{name}")
async def get_vector(
    name: VectorName,
    runtime: RuntimeDep,
    values: Annotated[  # noqa: FBT002 a query parameter
        bool, Query(description="Whether to return the values too, in the form of inline vectors.")
    ] = False,
) -> VectorObject:
    """Describe one vector."""
    return _object(runtime, await asyncio.to_thread(runtime.vectors.find, name), with_values=values)


@router.delete("/v1/vectors/{name}", dependencies=[Depends(require_admin)])
async def delete_vector(name: VectorName, runtime: RuntimeDep) -> DeletedVector:
    """Delete a vector. Running requests keep the values that they began with."""
    await asyncio.to_thread(runtime.vectors.delete, name)
    return DeletedVector(name=name)


def _hook_point(runtime: Runtime, hook: str | None) -> tuple[str, float]:
    """Return the hook point, and the median residual norm there, from which attention sinks are recognised."""
    default = runtime.registry.snapshot().default
    if hook is None:
        if default is None:
            message = "No dictionary is loaded, so there is no default hook point. Send 'hook'."
            raise InvalidRequestError(message, param="hook")
        return default.hook_name, default.median_norm
    runtime.check_hook(hook, "hook")
    return hook, runtime.engine.median_norms[hook]


def _object(runtime: Runtime, vector: StoredVector, *, with_values: bool = False) -> VectorObject:
    widths = {hook_name: runtime.lens.width(hook_name) for hook_name in runtime.lens.hook_names}
    return VectorObject(
        name=vector.name,
        model=vector.model,
        method=vector.method,
        created=int(vector.created),
        sha256=vector.sha256,
        layers=[
            VectorLayer(
                hook=hook_name,
                width=len(values),
                norm=math.hypot(*values),
                base64=base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode() if with_values else None,
            )
            for hook_name, values in vector.layers.items()
        ],
        notes=dict(vector.notes),
        problem=vector.misfit(runtime.model_id, widths),
    )
