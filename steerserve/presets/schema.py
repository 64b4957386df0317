"""The schema of a preset's file. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from steerserve.wire.base import StrictModel
from steerserve.wire.edits import Edit

PRESET_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
NAME_RULE = "up to 64 lower-case letters, digits, '.', '_' and '-', beginning with a letter or a digit"
SCHEMA_FILE = Path(__file__).with_name("preset.schema.json")
"""The JSON Schema by which editors check preset files; `steerserve presets schema` prints the same."""
MAX_EDITS = 4096
MAX_CHECKS = 256
MAX_CHECK_TOKENS = 4096
MAX_STOPS = 64
_INT64 = 2**63

Number = Annotated[float, Field(allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
Prompt = Annotated[str, Field(min_length=1, max_length=65_536)]
Phrases = Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(min_length=1, max_length=256)]


class PresetSampling(StrictModel):
    """Sampling parameters of requests with the preset that leave them out; they win over the server's defaults."""

    temperature: Number | None = Field(default=None, ge=0, le=2, description="Temperature; 0 is greedy.")
    top_p: Number | None = Field(default=None, ge=0, le=1, description="Share of the likeliest tokens that are kept.")
    top_k: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Number of likeliest tokens that are kept; 0 is all."
    )
    min_p: Number | None = Field(
        default=None, ge=0, le=1, description="Smallest probability that is kept, as a share of the likeliest token's."
    )
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2, description="Penalty as in OpenAI's API.")
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2, description="Penalty as in OpenAI's API.")
    repetition_penalty: Number | None = Field(
        default=None, gt=0, le=10, description="Penalty of repeated tokens; 1 is none."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=_INT64 - 1,
        description="Largest number of generated tokens, as far as the context has room.",
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = Field(
        default=None, description="A text, or a list of texts, before which the answer ends."
    )
    seed: int | None = Field(default=None, ge=-_INT64, le=_INT64 - 1, description="The same seed gives the same text.")

    @property
    def stops(self) -> tuple[str, ...] | None:
        """The stop strings; None if the preset does not set them."""
        if self.stop is None:
            return None
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class Activates(StrictModel):
    """A feature that the generated text must activate."""

    feature: int = Field(ge=0, description="Index into the dictionary.")
    dictionary: str | None = Field(default=None, description="Dictionary id; the default dictionary if absent.")
    above: Number = Field(
        description="What its largest activation must exceed when the unsteered model reads the generated tokens."
    )


class Check(StrictModel):
    """A prompt, and requirements for the text that the model then writes; `steerserve presets test` runs it."""

    prompt: Prompt = Field(description="The user's message.")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_CHECK_TOKENS,
        description="Largest number of generated tokens; by default the preset's, else 64.",
    )
    seed: int | None = Field(
        default=None,
        ge=-_INT64,
        le=_INT64 - 1,
        description="Seed of the sampling noise; by default the preset's, else 0.",
    )
    activates: Activates | None = Field(default=None, description="A feature that the text must activate.")
    contains_any: Phrases | None = Field(default=None, description="At least one of these must be in the text.")
    contains_none: Phrases | None = Field(default=None, description="None of these may be in the text.")
    max_kl: Number | None = Field(
        default=None, ge=0, description="Largest mean of KL(steered || unsteered), in nats a token."
    )
    max_repetition: Number | None = Field(
        default=None, ge=0, le=1, description="Largest share of 3-grams of tokens that repeat an earlier one."
    )

    @model_validator(mode="after")
    def _has_requirement(self) -> Check:
        if all(getattr(self, name) is None for name in REQUIREMENTS):
            problem = f"a check needs a requirement: give it {', '.join(REQUIREMENTS[:-1])} or {REQUIREMENTS[-1]}"
            raise PydanticCustomError("preset", "{problem}", {"problem": problem})
        return self


REQUIREMENTS = ("activates", "contains_any", "contains_none", "max_kl", "max_repetition")


class PresetFile(StrictModel):
    """A named set of edits, with a system prompt, sampling defaults and checks."""

    model_config = ConfigDict(title="steerserve preset")

    name: str = Field(pattern=PRESET_NAME, description="The preset's name in requests: the file's name without .yaml.")
    version: int = Field(default=1, ge=1, le=_INT64 - 1, description="Counts the preset's versions, for people.")
    description: str = Field(default="", max_length=2000, description="What the preset does, in a sentence.")
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="Model that the preset was made for; another model refuses it. Any model if absent."
    )
    system: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        default=None, description="System prompt for conversations without their own."
    )
    sampling: PresetSampling = Field(
        default_factory=PresetSampling,
        description="Defaults of sampling: the request's parameters win over them, and they over the server's.",
    )
    edits: Annotated[tuple[Edit, ...], Field(strict=False, max_length=MAX_EDITS)] = Field(
        default=(), description="Edits, as in the field `steering` of a request."
    )
    checks: list[Check] = Field(
        default_factory=list, max_length=MAX_CHECKS, description="Checks that `steerserve presets test` runs."
    )

    @model_validator(mode="after")
    def _does_something(self) -> PresetFile:
        sampling = self.sampling.model_dump(exclude_unset=True).values()
        if not self.edits and self.system is None and all(value is None or value == [] for value in sampling):
            problem = "a preset must do something: give it edits, a system prompt or sampling"
            raise PydanticCustomError("preset", "{problem}", {"problem": problem})
        return self


def preset_schema() -> dict[str, Any]:
    """Return the JSON Schema of preset files."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PresetFile.model_json_schema()}


def schema_text() -> str:
    """Return the JSON Schema as the package has it in a file."""
    return json.dumps(preset_schema(), indent=2, ensure_ascii=False) + "\n"
