"""The fields that the requests of all generating routes share, and the token counts of their answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.wire.base import Identifier, RequestModel, ResponseModel
from steerserve.wire.watching import Features

INT64_MAX = 2**63 - 1
MAX_BIASES = 4096
MAX_STOPS = 64
MAX_STOP_CHARS = 1024

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class StreamOptions(RequestModel):
    """Options of a stream; only with `stream: true`."""

    include_usage: bool = Field(
        default=False,
        description="Whether to send a last chunk with `usage` and no choices; all other chunks then have "
        "`usage: null`.",
    )
    continuous_usage_stats: bool = Field(
        default=False, description="With `include_usage`: send the counts so far on every chunk, instead of null."
    )
    include_obfuscation: bool = Field(
        default=False, description="Whether to pad chunks against traffic analysis; only false is supported."
    )

    @field_validator("include_obfuscation")
    @classmethod
    def _no_obfuscation(cls, value: bool) -> bool:  # noqa: FBT001 pydantic's signature
        if value:
            message = "'stream_options.include_obfuscation' is supported only as false: chunks are never padded."
            raise UnsupportedParameterError(
                message, param="stream_options.include_obfuscation", code="unsupported_value"
            )
        return value


class GenerationFields(RequestModel):
    """Model, steering, watched features, sampling and streaming."""

    model: str = Field(
        description="The model's id, as `/v1/models` lists it; with presets `model@preset` or `model@a+b`.",
        examples=["smollm2-135m-instruct"],
    )
    steering: Any = Field(
        default=None,
        description=(
            "Edits of dictionary features: a list of edits, a preset's name, a list of both, or the full form. `null` "
            "means no edits."
        ),
        examples=[[{"feature": 4242, "mode": "add", "scale": 8.0}]],
        # `parse_steering` reads it: its messages say more than those of a union of schemas could.
        json_schema_extra={
            "anyOf": [
                {"type": "array", "items": {"anyOf": [{"$ref": "#/components/schemas/Edit"}, {"type": "string"}]}},
                {"type": "string"},
                {"$ref": "#/components/schemas/Steering"},
                {"type": "null"},
            ]
        },
    )
    features: Features
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Sampling temperature; 0 (or below 1e-5) is greedy. Default: the server's configuration, then 1.",
    )
    top_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Sample from the likeliest tokens that have this share of the probability. Default 1.",
    )
    top_k: int | None = Field(
        default=None,
        ge=-1,
        le=INT64_MAX,
        description="Sample from this many of the likeliest tokens; 0 or -1 means all.",
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Smallest probability of a token, as a share of the likeliest token's. Default 0.",
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Subtracted from the logit of every token that was already generated."
    )
    frequency_penalty: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="Subtracted from the logit of a token once for each time that it was generated.",
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Makes tokens of the prompt and of the text so far less likely: their positive logits are divided "
        "by it, negative ones multiplied. Default 1.",
    )
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict,
        description="Map from token ids (as strings) to numbers that are added to the tokens' logits.",
        examples=[{"42": -100}],
    )
    seed: int | None = Field(
        default=None,
        ge=-INT64_MAX - 1,
        le=INT64_MAX,
        description="Seed of the sampling noise: equal requests with equal seeds get equal texts. Default: a random "
        "seed.",
    )
    n: int = Field(default=1, ge=1, le=128, description="Number of choices for each prompt.")
    stop: tuple[str, ...] = Field(
        default=(),
        description=f"A string, or up to {MAX_STOPS} strings; the text ends before the first that occurs.",
        json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    )
    stop_token_ids: list[int] = Field(
        default_factory=list, max_length=1024, description="Ids of tokens that end the text."
    )
    include_stop_str_in_output: bool = Field(default=False, description="Whether the text includes the stop string.")
    ignore_eos: bool = Field(default=False, description="Whether generation continues after an end-of-sequence token.")
    min_tokens: int = Field(
        default=0, ge=0, le=INT64_MAX, description="Smallest number of generated tokens; the text does not end earlier."
    )
    stream: bool = Field(
        default=False, description="Whether to send the text as server-sent events while it is generated."
    )
    stream_options: StreamOptions | None = Field(
        default=None, description="Options of the stream; only with `stream: true`."
    )
    user: Identifier | None = Field(default=None, description="An end user's id, for the client's own records.")

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _check_size(cls, value: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(value, dict) and len(value) > MAX_BIASES:  # before pydantic checks a million entries
            message = f"Invalid value for 'logit_bias': at most {MAX_BIASES} tokens are allowed, but got {len(value)}."
            raise InvalidRequestError(message, param="logit_bias")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list):
            kind, expected = "one_or_many", "a string or an array of strings"
            raise PydanticCustomError(kind, "{expected}", {"expected": expected})
        if len(stops) > MAX_STOPS:
            message = f"Invalid value for 'stop': at most {MAX_STOPS} strings are allowed, but got {len(stops)}."
            raise InvalidRequestError(message, param="stop")
        for index, stop in enumerate(stops):
            param = "stop" if isinstance(value, str) else f"stop[{index}]"
            if not isinstance(stop, str):
                message = f"Invalid type for '{param}': expected a string."
                raise InvalidRequestError(message, param=param, code="invalid_type")
            if not 1 <= len(stop) <= MAX_STOP_CHARS:
                message = (
                    f"Invalid value for '{param}': a stop string must have 1 to {MAX_STOP_CHARS} characters, but got "
                    f"{len(stop)}."
                )
                raise InvalidRequestError(message, param=param)
        return tuple(stops)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            message = "'stream_options' is only possible with 'stream': true."
            raise InvalidRequestError(message, param="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream has the token counts so far."""
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats


class PromptTokensDetails(ResponseModel):
    """How many of the prompt's tokens had to be computed."""

    cached_tokens: int = Field(description="Number of prompt tokens whose computation was shared with another request.")


class Usage(ResponseModel):
    """Numbers of tokens over all choices; a prompt counts once however many choices it has."""

    prompt_tokens: int = Field(description="Number of prompt tokens.")
    completion_tokens: int = Field(description="Number of generated tokens, including end-of-sequence tokens.")
    total_tokens: int = Field(description="Sum of `prompt_tokens` and `completion_tokens`.")
    prompt_tokens_details: PromptTokensDetails = Field(description="Details of the prompt's tokens.")
