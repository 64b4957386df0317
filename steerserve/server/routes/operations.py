"""`/health`, `/ready`, `/version` and `/metrics`: routes for operators, which need no key."""

from __future__ import annotations

import asyncio
import importlib.metadata

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

import steerserve
from steerserve.server.dependencies import MetricsDep, RuntimeDep
from steerserve.wire.status import BrokenPreset, Health, PresetReadiness, Readiness, Version

router = APIRouter(tags=["Operations"])

_NOT_READY = 503
_REASONS = {"loading": "The model is still loading.", "stopping": "The server is stopping."}


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def get_health() -> Health:
    """Answer as long as the process runs, whatever the model is doing."""
    return Health()


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    responses={_NOT_READY: {"model": Readiness, "description": "Requests are not accepted now; `reasons` says why."}},
)
async def get_readiness(runtime: RuntimeDep, response: Response) -> Readiness:
    """Tell whether requests are accepted, and which preset files are broken."""
    reasons = [_REASONS[runtime.state]] if runtime.state in _REASONS else []
    if reasons:
        response.status_code = _NOT_READY
    broken = (await asyncio.to_thread(runtime.presets.snapshot)).broken
    listed = [BrokenPreset(name=name, message=message) for name, message in broken.items()]
    presets = PresetReadiness(broken=listed) if listed else None
    return Readiness(status=runtime.state, reasons=reasons, presets=presets)


@router.get("/version")
async def get_version(runtime: RuntimeDep) -> Version:
    """Return the versions of steerserve and of its main libraries."""
    return Version(
        version=steerserve.__version__,
        torch=importlib.metadata.version("torch"),
        transformers=importlib.metadata.version("transformers"),
        transformer_lens=importlib.metadata.version("transformer-lens"),
        sae_lens=importlib.metadata.version("sae-lens"),
        device=str(runtime.lens.device),
        dtype=str(runtime.lens.dtype).removeprefix("torch."),
    )


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics_text(metrics: MetricsDep) -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)
