"""What the operational routes answer, and the error object of all routes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steerserve.wire.base import ResponseModel, absent_if_none


class Health(ResponseModel):
    """The process answers."""

    status: Literal["ok"] = Field(default="ok", description="Always this.")


class BrokenPreset(ResponseModel):
    """A preset's file that cannot be used as it is now."""

    name: str = Field(description="The preset's, or the file's where its name is wrong.")
    message: str = Field(description="What is wrong with it, with file, line and column.")


class PresetReadiness(ResponseModel):
    """How the presets are."""

    broken: list[BrokenPreset] = Field(description="Where a file was good before, that version is still in use.")


class Readiness(ResponseModel):
    """Whether requests are taken."""

    status: Literal["loading", "ready", "stopping"] = Field(description="State of the server.")
    reasons: list[str] = Field(description="Why it is not ready; empty if it is.")
    presets: PresetReadiness | None = absent_if_none("Where files of presets are broken, which keeps nobody waiting.")


class Version(ResponseModel):
    """Which steerserve this is, and on what it stands."""

    version: str = Field(description="Version of the package.")
    torch: str = Field(description="Version of PyTorch.")
    transformers: str = Field(description="Version of transformers.")
    transformer_lens: str = Field(description="Version of TransformerLens.")
    sae_lens: str = Field(description="Version of SAELens.")
    device: str = Field(description="Where the model runs: cpu or cuda:N.")
    dtype: str = Field(description="Number format of the model's weights.")


class ErrorDetail(ResponseModel):
    """What went wrong."""

    message: str = Field(description="A sentence that stands alone and says what would be right.")
    type: str = Field(description="`invalid_request_error`, `authentication_error`, `server_error`, ...")
    param: str | None = Field(description="The field it is about, such as `messages[0].content`.")
    code: str | None = Field(description="A stable name of the case.")


class ErrorBody(ResponseModel):
    """OpenAI's error object."""

    error: ErrorDetail = Field(description="The first thing that is wrong; all four keys are always there.")
