"""The schema of an experiment's file: prompts, arms and seeds. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from steerserve.presets.schema import MAX_STOPS, PRESET_NAME, Number, Prompt, StopText

SCHEMA_FILE = Path(__file__).with_name("experiment.schema.json")
"""What editors check experiments with; `steerserve compare --schema` prints the same."""
MAX_ARMS = 16
MAX_PROMPTS = 10_000
MAX_SEEDS = 10_000
MAX_SAMPLES = 128
MAX_TOKENS = 1 << 20
_LARGEST_SEED = 2**63 - 1
_STEERING = "Its edits, as in the field `steering` of a request: a list of edits, a preset's name, or the full form."

Name = Annotated[str, Field(min_length=1, max_length=128)]
Seed = Annotated[int, Field(ge=0, le=_LARGEST_SEED)]
PresetName = Annotated[str, Field(pattern=PRESET_NAME)]


def _check_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        problem = "it must begin with http:// or https://, such as http://127.0.0.1:8000/v1"
        raise PydanticCustomError("preset", "{problem}", {"problem": problem})
    return url


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who says it.")
    content: Annotated[str, Field(max_length=1 << 20)] = Field(description="The text.")


class ArmFile(_Strict):
    """One way of continuing every prompt."""

    name: Name = Field(description="Names it in the report; no two are alike.")
    preset: PresetName | Annotated[list[PresetName], Field(min_length=1, max_length=16)] | None = Field(
        default=None, description="A preset, or several, added to `steering`."
    )
    steering: Any = Field(
        default=None,
        description=_STEERING,
        json_schema_extra={"anyOf": [{"type": "array"}, {"type": "string"}, {"type": "object"}]},
    )
    system: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        default=None, description="Its own system prompt, in place of the prompt's or before it."
    )
    control_of: Name | None = Field(
        default=None, description="The arm whose edits it repeats along random directions, of the same size."
    )


class JudgeFile(_Strict):
    """A language model that says which of two texts it prefers."""

    url: Annotated[str, Field(max_length=2048), AfterValidator(_check_url)] = Field(
        description="An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."
    )
    model: Name = Field(description="The model's name there.")
    criterion: Prompt = Field(description="What makes one answer the better one, in a sentence.")
    key_env: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        default="OPENAI_API_KEY", description="The environment variable with the key, where the endpoint wants one."
    )


class Sampling(_Strict):
    """Sent with every request, so that no preset's or server's defaults make arms differ by it."""

    temperature: Number = Field(default=1.0, ge=0, le=2, description="0 is greedy.")
    top_p: Number = Field(default=1.0, ge=0, le=1, description="Likeliest tokens with this share.")
    top_k: int = Field(default=0, ge=0, le=1_000_000, description="Number of candidates; 0 is all.")
    min_p: Number = Field(default=0.0, ge=0, le=1, description="Least share of the likeliest token's.")
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2, description="As in OpenAI's API; 0 is none.")
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2, description="As in OpenAI's API; 0 is none.")
    repetition_penalty: Number = Field(default=1.0, gt=0, le=10, description="1 is none.")
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] = Field(
        default=[], description="A text, or a list of them, before which a sample ends; none by default."
    )


class ExperimentFile(Sampling):
    """Prompts x arms x seeds: what `steerserve compare` runs."""

    model_config = ConfigDict(title="steerserve experiment")

    name: str = Field(pattern=PRESET_NAME, description="Names its folder of results.")
    description: str = Field(default="", max_length=2000, description="What it is to find out, for the report.")
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="The model it is made for; refused on another. Any model if absent."
    )
    prompts: list[Prompt | Annotated[list[Message], Field(min_length=1, max_length=256)]] = Field(
        min_length=1, max_length=MAX_PROMPTS, description="What the user says, or whole conversations."
    )
    arms: list[ArmFile] = Field(
        min_length=1, max_length=MAX_ARMS, description="The first is what the others are held against."
    )
    seeds: (
        Annotated[int, Field(ge=1, le=MAX_SEEDS)] | Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS)]
    ) = Field(default=1, description="A list, or how many: 3 is 0, 1 and 2.")
    n: int = Field(default=1, ge=1, le=MAX_SAMPLES, description="Samples of each arm for one prompt and seed.")
    max_tokens: int = Field(default=64, ge=1, le=MAX_TOKENS, description="Generated tokens at most.")
    judge: JudgeFile | None = Field(default=None, description="Who compares the texts in pairs; optional.")

    @model_validator(mode="after")
    def _no_seed_twice(self) -> ExperimentFile:
        if isinstance(self.seeds, list) and len(set(self.seeds)) < len(self.seeds):
            problem = "a seed is there twice, and would give the same texts again; take one of them out"
            raise PydanticCustomError("preset", "{problem}", {"problem": problem, "field": "seeds"})
        return self


def experiment_schema() -> dict[str, Any]:
    """Return the JSON Schema of experiments' files."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ExperimentFile.model_json_schema()}


def schema_text() -> str:
    """Return the JSON Schema as the package has it in a file."""
    return json.dumps(experiment_schema(), indent=2, ensure_ascii=False) + "\n"
