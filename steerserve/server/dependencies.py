"""The parameters of routes: the runtime and the metrics of their app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import Depends, Request

from steerserve.server.metrics import Metrics

if TYPE_CHECKING:
    from steerserve.runtime import Runtime
    from steerserve.server.summary import RequestSummary


def get_runtime(request: Request) -> Any:  # noqa: ANN401 FastAPI must not read the type, which would load torch
    """Return the runtime that the app serves."""
    return request.app.state.runtime


def get_metrics(request: Request) -> Metrics:
    """Return the app's metrics."""
    return cast("Metrics", request.app.state.metrics)


def summary_of(request: Request) -> RequestSummary:
    """Return the summary of this request, which is logged when the request is over."""
    return cast("RequestSummary", request.state.summary)


if TYPE_CHECKING:
    RuntimeDep = Annotated[Runtime, Depends(get_runtime)]
else:
    RuntimeDep = Annotated[Any, Depends(get_runtime)]
MetricsDep = Annotated[Metrics, Depends(get_metrics)]
