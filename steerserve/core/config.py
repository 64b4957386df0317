"""The settings of a server: every field, its bounds and its default.

`core/layers.py` reads them from a file, the environment and flags; this module knows none of these.
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

from steerserve.core.findings import models_in

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_DICTIONARY_ID = "res17"
DEFAULT_DICTIONARY_SOURCE = f"bundled:{DEFAULT_MODEL}/res17"


def default_cache_dir() -> Path:
    """Return the folder for fetched and converted files: `STEERSERVE_CACHE_DIR`, or the user's cache."""
    if configured := os.environ.get("STEERSERVE_CACHE_DIR"):
        return expand_home(Path(configured))
    return expand_home(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "steerserve"


def expand_home(path: Path) -> Path:
    """Replace a leading `~` by the home folder; that of a user who is unknown stays as it is, as in a shell."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_bool(value: object) -> object:
    # In YAML `on`, `yes` and `true` are booleans, and pydantic would take them for 1.
    if isinstance(value, bool):
        message = f"a number is needed, not {str(value).lower()}"
        raise ValueError(message)  # noqa: TRY004 pydantic reports ValueError alone
    return value


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_id(value: object) -> object:
    """Read `ID=SOURCE`, as flags spell a dictionary."""
    if not isinstance(value, str):
        return value
    name, equals, source = value.partition("=")
    if not equals:
        message = f"{value!r} is no ID=SOURCE, such as {DEFAULT_DICTIONARY_ID}={DEFAULT_DICTIONARY_SOURCE}"
        raise ValueError(message)
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
        DEFAULT_MODEL, min_length=1, description="A built-in name, a hub repository, a folder or a .gguf file."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto is bfloat16 on CUDA and float32 on a CPU."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto prefers CUDA.")
    backend: Backend = Field(
        "bridge",
        description="bridge runs transformers' own blocks; hooked_transformer TransformerLens' HookedTransformer.",
    )
    process_weights: bool = Field(
        default=True, description="With hooked_transformer: fold norms into weights and centre them, as it does itself."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with a model. Off: such models are refused."
    )

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
            message = f"it must be auto, cpu, cuda or cuda:N, not {device!r}"
            raise ValueError(message)
        return device


class DictionarySettings(_Section):
    """A dictionary to load at the start."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="The short name that requests use for it."
    )
    source: str = Field(
        min_length=1, description="Where it is: bundled:MODEL/NAME, path:FOLDER, hf:REPO[/FOLDER], sae_lens:RELEASE/ID."
    )
    force: bool = Field(default=False, description="Use it also where it was made for a model of another name.")


class EngineSettings(_Section):
    """How much is generated at once."""

    slots: Whole = Field(16, ge=1, le=1024, description="Sequences that generate at the same time.")
    context: Whole = Field(2048, ge=16, le=1_048_576, description="Tokens of prompt and answer together, per slot.")
    queue: Whole = Field(256, ge=1, le=100_000, description="Sequences that may wait; one more is answered 503.")
    prefill_chunk: Literal["auto"] | Whole = Field(
        "auto", description="Prompt tokens read between two decode steps: auto or 1 to 65536."
    )
    threads: Whole | None = Field(
        None, ge=1, le=1024, description="CPU threads of the model; by default what torch chooses."
    )
    max_edits: Whole = Field(64, ge=0, le=4096, description="Edits that one request may carry.")

    @field_validator("prefill_chunk")
    @classmethod
    def _check_chunk(cls, value: int | str) -> int | str:
        largest = 65_536
        if isinstance(value, int) and not 1 <= value <= largest:
            message = f"it must be auto or a number from 1 to {largest}, not {value}"
            raise ValueError(message)
        return value


class ServerSettings(_Section):
    """Where and for whom the server listens."""

    # Keys stand before the host, whose check reads them.
    keys_file: HomePath | None = Field(None, description="A YAML file with the lists api_keys and admin_keys.")
    api_keys: tuple[SecretStr, ...] = Field(
        (), description="Inference keys. Only from STEERSERVE_API_KEY, STEERSERVE_API_KEYS or the keys file."
    )
    admin_keys: tuple[SecretStr, ...] = Field(
        (), description="Admin keys. Only from STEERSERVE_ADMIN_KEY, STEERSERVE_ADMIN_KEYS or the keys file."
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to bind. Any but loopback needs at least one inference key."
    )
    port: Whole = Field(8000, ge=0, le=65_535, description="Port to bind; 0 takes a free one and prints it.")
    max_body_bytes: Whole = Field(
        4 * 1024 * 1024, ge=1024, le=1024**3, description="Largest request body; a larger one is answered 413."
    )
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_split_commas)] = Field(
        (), description="Origins of web pages that may call the server; * for any."
    )
    keep_alive_s: Real = Field(
        15.0, ge=1, le=3600, description="Seconds of silence after which a stream gets a comment line."
    )
    drain_s: Real = Field(
        30.0, ge=0, le=3600, description="Seconds that requests under way may take to finish when the server stops."
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
    """Work beside serving: training and interpreting dictionaries."""

    max_running: Whole = Field(1, ge=1, le=64, description="Jobs that run at the same time; the others wait.")
    threads: Whole = Field(1, ge=1, le=1024, description="CPU threads of each job, which has low priority besides.")
    max_attempts: Whole = Field(
        3, ge=1, le=100, description="How often a job that dies without an error is started before it counts as failed."
    )


class SamplingSettings(_Section):
    """What a request gets for a sampling parameter it leaves out; unset means OpenAI's default."""

    temperature: Real | None = Field(None, ge=0, le=2, description="Default temperature; 0 is greedy.")
    top_p: Real | None = Field(None, gt=0, le=1, description="Default nucleus.")
    top_k: Whole | None = Field(None, ge=0, le=1_000_000, description="Default number of candidates; 0 is all.")
    min_p: Real | None = Field(None, ge=0, le=1, description="Default least share of the likeliest token.")
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
    """Everything that `steerserve serve` can be told."""

    model: ModelSettings = Field(default_factory=ModelSettings, description="The model.")
    dictionaries: Annotated[tuple[NamedSource, ...], BeforeValidator(_split_commas)] = Field(
        default_factory=_default_dictionaries,
        description="Dictionaries loaded at start, each an id and a source, or ID=SOURCE; the first is the default.",
    )
    presets_dir: HomePath = Field(
        Path("presets"),
        description="Folder of preset files. Not set, presets of the package for the default model are there too.",
    )
    dictionary_dirs: Annotated[tuple[HomePath, ...], BeforeValidator(_split_commas)] = Field(
        (Path("dictionaries"),),
        description="Folders that path: sources may lie in; jobs keep their state and results in the first.",
    )
    corpus_dirs: Annotated[tuple[HomePath, ...], BeforeValidator(_split_commas)] = Field(
        (Path("corpus"),), description="Folders that the corpus of a job may lie in."
    )
    max_dictionary_bytes: Whole = Field(
        8 * 1024**3, ge=1024**2, le=1024**4, description="Largest dictionary that is loaded, as float32."
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="The engine.")
    server: ServerSettings = Field(default_factory=ServerSettings, description="The HTTP server.")
    jobs: JobSettings = Field(default_factory=JobSettings, description="Training and interpreting beside serving.")
    sampling: SamplingSettings = Field(default_factory=SamplingSettings, description="Defaults of sampling.")
    cache_dir: HomePath = Field(
        default_factory=default_cache_dir, description="Folder for fetched and converted files."
    )
    log_level: LogLevel = Field("info", description="Least severe messages that are logged.")

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
        """Folders that `path:` sources may lie in: those configured, and those of the configured dictionaries."""
        named = (d.source.removeprefix("path:") for d in self.dictionaries if d.source.startswith("path:"))
        return (*self.dictionary_dirs, *(expand_home(Path(folder)) for folder in named))


def setting_names(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted name of every setting and section; items of a list are named as if they were the list."""
    names: list[str] = []
    for name, described in section.model_fields.items():
        names.append(prefix + name)
        for inner in models_in(described.annotation):
            names += setting_names(inner, f"{prefix}{name}.")
    return names
