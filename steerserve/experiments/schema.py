"""The schema of an experiment's file: prompts, arms and seeds. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from steerserve.presets.schema import MAX_STOPS, PRESET_NAME, Number, Prompt, StopText
from steerserve.wire.base import StrictModel

SCHEMA_FILE = Path(__file__).with_name("experiment.schema.json")
"""The JSON Schema by which editors check experiments; `steerserve compare --schema` prints the same."""
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


class PromptMessage(StrictModel):
    """One message of a conversation."""

    model_config = ConfigDict(title="Message")

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who says the message.")
    content: Annotated[str, Field(max_length=1 << 20)] = Field(description="Text of the message.")


class ArmFile(StrictModel):
    """One way of continuing every prompt."""

    name: Name = Field(description="Name of the arm in the report; each arm needs its own.")
    preset: PresetName | Annotated[list[PresetName], Field(min_length=1, max_length=16)] | None = Field(
        default=None, description="A preset, or several, added to `steering`."
    )
    steering: Any = Field(
        default=None,
        description=_STEERING,
        json_schema_extra={"anyOf": [{"type": "array"}, {"type": "string"}, {"type": "object"}]},
    )
    system: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        default=None, description="The arm's system prompt, in place of the prompt's own or before it."
    )
    control_of: Name | None = Field(
        default=None,
        description="Name of an arm whose edits this control repeats along random directions, with the same size.",
    )


class JudgeFile(StrictModel):
    """A language model that judges which of two texts is better."""

    url: Annotated[str, Field(max_length=2048), AfterValidator(_check_url)] = Field(
        description="An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."
    )
    model: Name = Field(description="The model's name there.")
    criterion: Prompt = Field(description="What makes an answer better, in a sentence.")
    key_env: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        default="OPENAI_API_KEY", description="Environment variable with the endpoint's API key, if it needs one."
    )


class Sampling(StrictModel):
    """Sampling parameters, sent with every request so that no defaults of presets or servers make arms differ."""

    temperature: Number = Field(default=1.0, ge=0, le=2, description="Temperature; 0 is greedy.")
    top_p: Number = Field(default=1.0, ge=0, le=1, description="Share of the likeliest tokens that are kept.")
    top_k: int = Field(default=0, ge=0, le=1_000_000, description="Number of likeliest tokens that are kept; 0 is all.")
    min_p: Number = Field(
        default=0.0, ge=0, le=1, description="Smallest probability that is kept, as a share of the likeliest token's."
    )
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2, description="Penalty as in OpenAI's API; 0 is none.")
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2, description="Penalty as in OpenAI's API; 0 is none.")
    repetition_penalty: Number = Field(default=1.0, gt=0, le=10, description="Penalty of repeated tokens; 1 is none.")
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] = Field(
        default=[], description="A text, or a list of texts, before which a sample ends; none by default."
    )


class ExperimentFile(Sampling):
    """An experiment of prompts x arms x seeds, which `steerserve compare` runs."""

    model_config = ConfigDict(title="steerserve experiment")

    name: str = Field(pattern=PRESET_NAME, description="Name of the experiment and of its folder of results.")
    description: str = Field(
        default="", max_length=2000, description="What the experiment should find out, for the report."
    )
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None,
        description="Model that the experiment was made for; another model refuses it. Any model if absent.",
    )
    prompts: list[Prompt | Annotated[list[PromptMessage], Field(min_length=1, max_length=256)]] = Field(
        min_length=1, max_length=MAX_PROMPTS, description="Messages of the user, or whole conversations."
    )
    arms: list[ArmFile] = Field(
        min_length=1, max_length=MAX_ARMS, description="The arms; the others are compared with the first."
    )
    seeds: (
        Annotated[int, Field(ge=1, le=MAX_SEEDS)] | Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS)]
    ) = Field(default=1, description="A list of seeds, or their number: 3 is 0, 1 and 2.")
    n: int = Field(
        default=1, ge=1, le=MAX_SAMPLES, description="Number of samples of each arm for one prompt and seed."
    )
    max_tokens: int = Field(default=64, ge=1, le=MAX_TOKENS, description="Largest number of generated tokens.")
    judge: JudgeFile | None = Field(
        default=None, description="Language model that compares the texts in pairs; optional."
    )

    @model_validator(mode="after")
    def _no_seed_twice(self) -> ExperimentFile:
        if isinstance(self.seeds, list) and len(set(self.seeds)) < len(self.seeds):
            problem = "a seed is listed twice and would give the same texts again; remove one of them"
            raise PydanticCustomError("preset", "{problem}", {"problem": problem, "field": "seeds"})
        return self


def experiment_schema() -> dict[str, Any]:
    """Return the JSON Schema of experiments' files."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ExperimentFile.model_json_schema()}


def schema_text() -> str:
    """Return the JSON Schema as the package has it in a file."""
    return json.dumps(experiment_schema(), indent=2, ensure_ascii=False) + "\n"
