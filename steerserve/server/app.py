"""The ASGI application: routes, middleware and error handlers over one runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import steerserve
from steerserve.presets.schema import PresetFile
from steerserve.server.errors import install_error_handlers
from steerserve.server.metrics import Metrics
from steerserve.server.middleware import REQUEST_ID, BugBarrier, RequestTracing
from steerserve.server.openapi import error_responses, install_document
from steerserve.server.routes import (
    admin_dictionaries,
    admin_presets,
    chat,
    compare,
    comparisons,
    completions,
    dictionaries,
    features,
    jobs,
    models,
    operations,
    texts,
    vectors,
)
from steerserve.wire.catalog import LoadDictionaryRequest
from steerserve.wire.chat import ChatChunk, ChatCompletionRequest
from steerserve.wire.compare import ArmDelta, ArmDone, ComparisonRequest
from steerserve.wire.completions import CompletionChunk, CompletionRequest
from steerserve.wire.edits import Steering
from steerserve.wire.features import LabelRequest
from steerserve.wire.jobs import InterpretRequest, TrainRequest
from steerserve.wire.texts import ContrastRequest, InspectRequest
from steerserve.wire.vectors import CreateVectorRequest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from steerserve.runtime import Runtime

_DESCRIPTION = (
    "OpenAI's API for one language model, with edits of sparse-autoencoder features in the field `steering` of every "
    "generating request. Unknown top-level fields are ignored, null means that a field was left out, and documented "
    "fields that are not supported are refused."
)
_API_ROUTERS = (
    chat.router,
    completions.router,
    compare.router,
    comparisons.router,
    models.router,
    dictionaries.router,
    features.router,
    admin_dictionaries.router,
    admin_presets.router,
    jobs.router,
    texts.router,
    vectors.router,
)


def create_app(runtime: Runtime) -> FastAPI:
    """Build the application that serves `runtime`; the caller starts and stops `runtime`."""
    metrics = Metrics(runtime)
    origins = list(runtime.settings.server.cors_origins)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=[REQUEST_ID, "retry-after", "retry-after-ms"],
        max_age=3600,
    )
    app = FastAPI(
        title="steerserve",
        version=steerserve.__version__,
        description=_DESCRIPTION,
        redirect_slashes=False,
        redoc_url=None,
        # The first is the outermost: the answers of the others get an id and a log line too.
        middleware=[
            Middleware(RequestTracing, metrics=metrics),
            *([cors] if origins else []),
            Middleware(BugBarrier),
        ],
    )
    app.state.runtime = runtime
    app.state.metrics = metrics
    install_error_handlers(app)
    for router in _API_ROUTERS:
        app.include_router(router, responses=error_responses(401, 404))
    app.include_router(operations.router)
    bodies: list[type[BaseModel]] = [
        ChatCompletionRequest,
        CompletionRequest,
        ComparisonRequest,
        LoadDictionaryRequest,
        LabelRequest,
        TrainRequest,
        InterpretRequest,
        InspectRequest,
        ContrastRequest,
        CreateVectorRequest,
        PresetFile,
    ]
    install_document(app, [*bodies, ChatChunk, CompletionChunk, ArmDelta, ArmDone, Steering])
    return app
