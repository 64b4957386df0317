"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Path

from steerserve.core.errors import InvalidRequestError, ModelNotFoundError
from steerserve.presets.naming import model_with
from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_inference
from steerserve.wire.catalog import ModelList, ModelObject

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

ModelId = Annotated[
    str, Path(description="Id of the model, as `/v1/models` lists it, or with several presets: `model@a+b`.")
]

router = APIRouter(tags=["OpenAI"], dependencies=[Depends(require_inference)])


@router.get("/v1/models")
async def list_models(runtime: RuntimeDep) -> ModelList:
    """List the models that requests can name: the served model, then the same with each usable preset."""
    named = [model_with(runtime.model_id, [name]) for name in await asyncio.to_thread(runtime.usable_presets)]
    return ModelList(data=[_model_object(runtime, model_id) for model_id in (runtime.model_id, *named)])


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: ModelId, runtime: RuntimeDep) -> ModelObject:
    """Describe one model; its id may contain slashes."""
    try:
        await asyncio.to_thread(_check, runtime, model_id)
    except InvalidRequestError as error:  # with an unknown preset, the whole model is unknown
        raise ModelNotFoundError(error.message, param="model") from error
    return _model_object(runtime, model_id)


def _check(runtime: Runtime, model_id: str) -> None:
    presets = runtime.presets.snapshot()
    for name in runtime.check_model(model_id, presets):
        if (problem := runtime.preset_problem(presets.presets[name])) is not None:
            message = f"The preset {name!r} cannot be used here: {problem}"
            raise InvalidRequestError(message, param="model")


def _model_object(runtime: Runtime, model_id: str) -> ModelObject:
    return ModelObject(
        id=model_id,
        created=runtime.created,
        root=runtime.model_id,
        parent=runtime.model_id if model_id != runtime.model_id else None,
        max_model_len=runtime.context_length,
    )
