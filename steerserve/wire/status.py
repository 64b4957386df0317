"""The answers of the operational routes, and the error object of all routes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steerserve.wire.base import ResponseModel, absent_if_none


class Health(ResponseModel):
    """The process answers."""

    status: Literal["ok"] = Field(default="ok", description="Always `ok`.")


class BrokenPreset(ResponseModel):
    """A preset whose current file cannot be used."""

    name: str = Field(description="Name of the preset, or of the file if the file's name is invalid.")
    message: str = Field(description="What is wrong with the file, with its name, line and column.")


class PresetReadiness(ResponseModel):
    """Presets that need attention."""

    broken: list[BrokenPreset] = Field(
        description="Presets with an invalid file. The last valid version of the file, if any, stays in use."
    )


class Readiness(ResponseModel):
    """Whether the server accepts requests."""

    status: Literal["loading", "ready", "stopping"] = Field(description="State of the server.")
    reasons: list[str] = Field(description="Why the server is not ready; empty if it is.")
    presets: PresetReadiness | None = absent_if_none(
        "Presets with an invalid file. They do not keep the server from being ready; absent if all are valid."
    )


class Version(ResponseModel):
    """Versions of steerserve and of the libraries it runs on."""

    version: str = Field(description="Version of steerserve.")
    torch: str = Field(description="Version of PyTorch.")
    transformers: str = Field(description="Version of transformers.")
    transformer_lens: str = Field(description="Version of TransformerLens.")
    sae_lens: str = Field(description="Version of SAELens.")
    device: str = Field(description="Device that the model runs on: cpu or cuda:N.")
    dtype: str = Field(description="Number format of the model's weights.")


class ErrorDetail(ResponseModel):
    """What went wrong."""

    message: str = Field(description="What is wrong, and what would be right, in sentences that stand alone.")
    type: str = Field(description="`invalid_request_error`, `authentication_error`, `server_error`, ...")
    param: str | None = Field(description="The field that is wrong, such as `messages[0].content`.")
    code: str | None = Field(description="Stable name of the case.")


class ErrorBody(ResponseModel):
    """OpenAI's error object."""

    error: ErrorDetail = Field(description="The first error that was found; all four keys are always present.")
