"""The settings of a server: every field, its bounds and its default.

`core/settings_sources.py` reads them from a file, the environment and flags; this module knows none of these.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from steerserve.core.files import expand_home

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_DICTIONARY_ID = "res17"
DEFAULT_DICTIONARY_SOURCE = f"bundled:{DEFAULT_MODEL}/res17"


def default_cache_dir() -> Path:
    """Return the folder for fetched and converted files: `STEERSERVE_CACHE_DIR`, or the user's cache folder."""
    if configured := os.environ.get("STEERSERVE_CACHE_DIR"):
        return expand_home(Path(configured))
    return expand_home(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "steerserve"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_bool(value: object) -> object:
    # In YAML `on`, `yes` and `true` are booleans, and pydantic would take them for 1.
    if isinstance(value, bool):
        message = f"the value must be a number, not {str(value).lower()}"
        raise ValueError(message)  # noqa: TRY004 pydantic reports ValueError alone
    return value


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_id(value: object) -> object:
    """Parse `ID=SOURCE`, which is how flags write a dictionary."""
    if not isinstance(value, str):
        return value
    name, equals, source = value.partition("=")
    if not equals:
        raise ValueError(f"{value!r} is not ID=SOURCE, such as {DEFAULT_DICTIONARY_ID}={DEFAULT_DICTIONARY_SOURCE}")
    return {"id": name.strip(), "source": source.strip()}


Whole = Annotated[int, BeforeValidator(_refuse_bool)]
Real = Annotated[float, BeforeValidator(_refuse_bool), Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
HomePath = Annotated[Path, AfterValidator(expand_home)]
Backend = Literal["bridge", "hooked_transformer"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ModelSettings(_Section):
    """Which model is served, and how it is loaded."""

    source: str = Field(
        DEFAULT_MODEL,
        min_length=1,
        description="Model to serve: a built-in name, a hub repository, a folder or a .gguf file.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto is bfloat16 on CUDA and float32 on a CPU."
    )
    device: str = Field("auto", description="Device that computes: auto, cpu, cuda or cuda:N; auto prefers CUDA.")
    backend: Backend = Field(
        "bridge",
        description="What runs the model: bridge (transformers' own blocks) or hooked_transformer (TransformerLens').",
    )
    process_weights: bool = Field(
        default=True,
        description="With hooked_transformer: fold norms into weights and centre them, which is its default.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with a model; if false, such models are refused."
    )

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
            message = f"it must be auto, cpu, cuda or cuda:N, not {device!r}"
            raise ValueError(message)
        return device


class DictionarySettings(_Section):
    """A dictionary to load when the server starts."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Short name that requests use for the dictionary."
    )
    source: str = Field(
        min_length=1,
        description="Source of the dictionary: bundled:MODEL/NAME, path:FOLDER, hf:REPO[/FOLDER], sae_lens:RELEASE/ID.",
    )
    force: bool = Field(
        default=False, description="Load the dictionary even if it was trained on a model of another name."
    )


class EngineSettings(_Section):
    """How much the engine generates at once."""

    slots: Whole = Field(16, ge=1, le=1024, description="Number of sequences that generate at the same time.")
    context: Whole = Field(
        2048, ge=16, le=1_048_576, description="Largest number of tokens of prompt and answer together, per slot."
    )
    queue: Whole = Field(
        256, ge=1, le=100_000, description="Number of sequences that may wait; one more is answered 503."
    )
    prefill_chunk: Literal["auto"] | Whole = Field(
        "auto", description="Prompt tokens computed between two decode steps: auto or 1 to 65536."
    )
    threads: Whole | None = Field(
        None, ge=1, le=1024, description="Number of CPU threads of the model; torch chooses if not set."
    )
    max_edits: Whole = Field(64, ge=0, le=4096, description="Largest number of edits in one request.")

    @field_validator("prefill_chunk")
    @classmethod
    def _check_chunk(cls, value: int | str) -> int | str:
        largest = 65_536
        if isinstance(value, int) and not 1 <= value <= largest:
            message = f"it must be auto or a number from 1 to {largest}, not {value}"
            raise ValueError(message)
        return value


class ServerSettings(_Section):
    """Where the server listens, and who may use it."""

    # Keys are declared before the host, because its validator reads them.
    keys_file: HomePath | None = Field(None, description="YAML file with the lists api_keys and admin_keys.")
    api_keys: tuple[SecretStr, ...] = Field(
        (), description="Inference keys. Only from STEERSERVE_API_KEY, STEERSERVE_API_KEYS or the keys file."
    )
    admin_keys: tuple[SecretStr, ...] = Field(
        (), description="Admin keys. Only from STEERSERVE_ADMIN_KEY, STEERSERVE_ADMIN_KEYS or the keys file."
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to bind; any but a loopback address needs at least one inference key.",
    )
    port: Whole = Field(8000, ge=0, le=65_535, description="Port to bind; 0 takes a free port and prints it.")
    max_body_bytes: Whole = Field(
        4 * 1024 * 1024, ge=1024, le=1024**3, description="Largest request body in bytes; a larger one is answered 413."
    )
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_split_commas)] = Field(
        (), description="Origins of web pages that may call the server; * allows any."
    )
    keep_alive_s: Real = Field(
        15.0, ge=1, le=3600, description="Seconds of silence after which a stream gets a comment line."
    )
    drain_s: Real = Field(
        30.0, ge=0, le=3600, description="Seconds that running requests may take to finish when the server stops."
    )

    @field_validator("host")
    @classmethod
    def _check_reach(cls, host: str, info: ValidationInfo) -> str:
        if not is_loopback(host) and not info.data.get("api_keys"):
            message = (
                f"other machines could reach {host} and there is no inference key: set STEERSERVE_API_KEY "
                "(or server.keys_file), or bind 127.0.0.1"
            )
            raise ValueError(message)
        return host


class JobSettings(_Section):
    """Jobs that run beside serving: training and interpreting dictionaries."""

    max_running: Whole = Field(
        1, ge=1, le=64, description="Number of jobs that run at the same time; further jobs wait."
    )
    threads: Whole = Field(
        1, ge=1, le=1024, description="Number of CPU threads of each job; jobs also have low priority."
    )
    max_attempts: Whole = Field(
        3,
        ge=1,
        le=100,
        description="How often a job is started that dies without an error, before it counts as failed.",
    )


class SamplingSettings(_Section):
    """Sampling parameters of requests that leave them out; OpenAI's defaults if not set."""

    temperature: Real | None = Field(None, ge=0, le=2, description="Default temperature; 0 is greedy.")
    top_p: Real | None = Field(
        None, gt=0, le=1, description="Default nucleus: the likeliest tokens with this total probability."
    )
    top_k: Whole | None = Field(None, ge=0, le=1_000_000, description="Default number of candidate tokens; 0 is all.")
    min_p: Real | None = Field(
        None,
        ge=0,
        le=1,
        description="Default smallest probability of a candidate, as a fraction of the likeliest token's.",
    )
    repetition_penalty: Real | None = Field(None, gt=0, le=10, description="Default repetition penalty; 1 is none.")


NamedSource = Annotated[DictionarySettings, BeforeValidator(_split_id)]


def _default_dictionaries(settings: dict[str, Any]) -> tuple[DictionarySettings, ...]:
    model = settings.get("model")
    if model is None or model.source != DEFAULT_MODEL:
        return ()
    return (DictionarySettings(id=DEFAULT_DICTIONARY_ID, source=DEFAULT_DICTIONARY_SOURCE),)


LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]


class Settings(_Section):
    """All settings of `steerserve serve`."""

    model: ModelSettings = Field(default_factory=ModelSettings, description="Which model is served, and how.")
    dictionaries: Annotated[tuple[NamedSource, ...], BeforeValidator(_split_commas)] = Field(
        default_factory=_default_dictionaries,
        description="Dictionaries to load at start, each an id and a source, or ID=SOURCE; the first is the default.",
    )
    presets_dir: HomePath = Field(
        Path("presets"),
        description="Folder of preset files; if not set, the package's presets for the default model are served too.",
    )
    dictionary_dirs: Annotated[tuple[HomePath, ...], BeforeValidator(_split_commas)] = Field(
        (Path("dictionaries"),),
        description="Folders that may hold path: sources; jobs keep their state and results in the first.",
    )
    corpus_dirs: Annotated[tuple[HomePath, ...], BeforeValidator(_split_commas)] = Field(
        (Path("corpus"),), description="Folders that may hold the corpus of a job."
    )
    max_dictionary_bytes: Whole = Field(
        8 * 1024**3, ge=1024**2, le=1024**4, description="Largest size of a loaded dictionary in bytes, as float32."
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="How much is generated at once.")
    server: ServerSettings = Field(
        default_factory=ServerSettings, description="Where the server listens, and who may use it."
    )
    jobs: JobSettings = Field(
        default_factory=JobSettings, description="Jobs beside serving: training and interpreting dictionaries."
    )
    sampling: SamplingSettings = Field(
        default_factory=SamplingSettings, description="Sampling parameters of requests that leave them out."
    )
    cache_dir: HomePath = Field(default_factory=default_cache_dir, description="Folder of fetched and converted files.")
    log_level: LogLevel = Field("info", description="Least severe level that is logged.")

    @field_validator("dictionaries")
    @classmethod
    def _check_ids(cls, value: tuple[DictionarySettings, ...]) -> tuple[DictionarySettings, ...]:
        ids = [dictionary.id for dictionary in value]
        if repeated := next((name for name in ids if ids.count(name) > 1), None):
            message = f"two dictionaries have the id {repeated!r}"
            raise ValueError(message)
        return value

    @property
    def allowed_dictionary_dirs(self) -> tuple[Path, ...]:
        """Folders that may hold `path:` sources: the configured ones, and those of the configured dictionaries."""
        named = (d.source.removeprefix("path:") for d in self.dictionaries if d.source.startswith("path:"))
        return (*self.dictionary_dirs, *(expand_home(Path(folder)) for folder in named))
