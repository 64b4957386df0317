"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Path

from steerserve.server.dependencies import RuntimeDep
from steerserve.server.keys import require_inference
from steerserve.server.schemas.listings import ModelList, ModelObject

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

ModelId = Annotated[str, Path(description="As `/v1/models` lists it.")]

router = APIRouter(tags=["OpenAI"], dependencies=[Depends(require_inference)])


@router.get("/v1/models")
async def list_models(runtime: RuntimeDep) -> ModelList:
    """List the models that can be asked for."""
    return ModelList(data=[_model_object(runtime)])


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: ModelId, runtime: RuntimeDep) -> ModelObject:
    """Describe one model; its id may contain slashes."""
    runtime.check_model(model_id)
    return _model_object(runtime)


def _model_object(runtime: Runtime) -> ModelObject:
    return ModelObject(
        id=runtime.model_id,
        created=runtime.created,
        root=runtime.model_id,
        max_model_len=runtime.context_length,
    )
