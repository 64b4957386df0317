"""The requests of `/admin/train` and `/admin/interpret`, and the jobs of the routes under `/admin/jobs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from steerserve.core.literals import (
    DEFAULT_INTERPRET_TOKENS,
    MAX_INTERPRET_TOKENS,
    Architecture,
    JobEventType,
    JobKind,
    JobState,
    SavedDtype,
    Storage,
)
from steerserve.wire.base import ResponseModel, StrictRequestModel

MAX_HOOKS = 64
MAX_WIDTHS = 16
MAX_CORPORA = 16
MAX_SHARES = 32
MAX_D_SAE = 2**20
MAX_INTERPRETED = 64
MAX_TOKENS = 10**10
INT64_MAX = 2**63 - 1

Width = Annotated[int, Field(ge=1, le=MAX_D_SAE)]
Hook = Annotated[str, Field(min_length=1, max_length=200)]
CorpusEntry = Annotated[str, Field(min_length=1, max_length=4096)]
Share = Annotated[float, Field(gt=0, lt=1)]


def _how_many(value: object) -> str:
    return "many" if isinstance(value, list) else "one"


Corpus = Annotated[
    Annotated[CorpusEntry, Tag("one")]
    | Annotated[list[CorpusEntry], Field(min_length=1, max_length=MAX_CORPORA), Tag("many")],
    Discriminator(_how_many),
]


class TrainRequest(StrictRequestModel):
    """Dictionaries to train in one pass: one, or one for each pair of a hook point and a width."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the dictionary; with several dictionaries, the beginning of their names.",
        examples=["res20"],
    )
    model: str | None = Field(default=None, description="Id of the served model. Default: the served model.")
    hook: (
        Annotated[
            Annotated[Hook, Tag("one")] | Annotated[list[Hook], Field(min_length=1, max_length=MAX_HOOKS), Tag("many")],
            Discriminator(_how_many),
        ]
        | None
    ) = Field(
        default=None,
        description="A hook point, or several. Default: the residual stream after about three fifths of the blocks.",
        examples=["blocks.17.hook_resid_post"],
    )
    architecture: Architecture = Field(default="batchtopk", description="Architecture of the autoencoder.")
    d_sae: Annotated[
        Annotated[Width, Tag("one")] | Annotated[list[Width], Field(min_length=1, max_length=MAX_WIDTHS), Tag("many")],
        Discriminator(_how_many),
    ] = Field(default=4096, description="Number of features, or several numbers.")
    k: int | None = Field(
        default=None,
        ge=1,
        le=MAX_D_SAE,
        description="Number of active features a token, for the TopK family and matching pursuit. Default 32.",
    )
    l1_coefficient: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="Weight of the sparsity penalty, for standard, gated and jumprelu. Default 5.",
    )
    tokens: int = Field(default=1_000_000, ge=16, le=MAX_TOKENS, description="Number of tokens of text to train on.")
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Number of times that each token is used. Default: 6 with `storage: disk`, 1 with `buffer`.",
    )
    corpus: Corpus = Field(
        default="self",
        description="`self` (text that the model writes), `sample` (the sample corpus), `path:FOLDER_OR_FILE` below "
        "one of `corpus_dirs`, or `hf:OWNER/NAME[@CONFIG][:SPLIT]`; or a list of several.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=16,
        le=2**17,
        description="Number of tokens a step. Default: 2048, or fewer (at least 512) in a short run.",
    )
    lr: float = Field(default=8e-4, gt=0, lt=1, description="Learning rate of Adam.")
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="Seed of the initial weights and of the order of the tokens."
    )
    resample: bool | Annotated[list[Share], Field(max_length=MAX_SHARES)] | None = Field(
        default=None,
        description="Shares of the run after which dead features are initialised anew; true: the usual shares, false: "
        "never. Default: what is usual for the architecture.",
    )
    dtype: SavedDtype = Field(default="float32", description="Number format of the saved weights.")
    context_size: int = Field(
        default=128, ge=16, le=2**20, description="Number of tokens in each context window of the text."
    )
    storage: Storage = Field(
        default="disk",
        description="`disk` keeps all activations on disk; `buffer` keeps some in memory and computes them anew in "
        "each epoch.",
    )
    load: bool = Field(default=False, description="Whether to load and serve the dictionaries when the job is done.")


class InterpretRequest(StrictRequestModel):
    """Loaded dictionaries to interpret in one pass over a text."""

    dictionary: str | None = Field(
        default=None,
        max_length=200,
        description="Id of a loaded dictionary. Default: the default dictionary, unless `dictionaries` is sent.",
    )
    dictionaries: Annotated[list[str], Field(min_length=1, max_length=MAX_INTERPRETED)] | None = Field(
        default=None, description="Instead of `dictionary`: ids of several loaded dictionaries."
    )
    model: str | None = Field(default=None, description="Id of the served model. Default: the served model.")
    tokens: int = Field(
        default=DEFAULT_INTERPRET_TOKENS,
        ge=1,
        le=MAX_INTERPRET_TOKENS,
        description="Number of tokens of text to read, not counting special tokens.",
    )
    corpus: Corpus = Field(default="self", description="The text to read; as in `/admin/train`.")
    seed: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="Seed of the text that the model writes, and of the order of a data set.",
    )
    context_size: int = Field(
        default=128, ge=16, le=2**20, description="Number of tokens in each context window of the text."
    )
    calibrate: bool = Field(
        default=True,
        description="Whether to measure the doses of the features and what they make the model write, too.",
    )


class JobObject(ResponseModel):
    """A job: work that a process of its own does while the server generates."""

    id: str = Field(description="Id of the job.")
    kind: JobKind = Field(description="The kind of work.")
    state: JobState = Field(description="State of the job; `done`, `failed` and `cancelled` are final.")
    progress: dict[str, Any] = Field(
        description="The worker's latest progress: `stage`, `done`, `total` and `eta_s` (of the stage), and while it "
        "trains `step`, `num_steps`, `tokens`, `tokens_per_s`, `losses`, `explained_variance`, `l0`, `dead_fraction` "
        "and `resampled`; with several dictionaries the last five by id under `dictionaries`."
    )
    error: str | None = Field(description="Why the job failed; null if it has not.")
    result: dict[str, Any] | None = Field(
        description="Result of training: `dictionaries` with `id`, `source` and `report`; with `load` also `loaded` "
        "(ids), and `load_error` if one could not be loaded. Result of interpreting: `dictionaries` with `id`, "
        "`source`, `sha256`, `store`, `num_tokens`, `num_features`, `num_live`, `num_labelled` and `num_calibrated`."
    )
    created: int = Field(description="Unix time in seconds at which the job was submitted.")
    started: int | None = Field(description="Unix time in seconds at which the job first ran; null if it has not.")
    ended: int | None = Field(description="Unix time in seconds at which the job ended; null if it has not.")


class JobList(ResponseModel):
    """Jobs, the newest first."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[JobObject] = Field(description="The jobs.")
    has_more: bool = Field(description="Whether a larger `limit` returns more.")


class JobEventObject(ResponseModel):
    """One event of a job's stream; its further fields depend on `type`."""

    seq: int = Field(
        description="Sequence number, which increases within the job; numbers of dropped events are missing."
    )
    type: JobEventType = Field(
        description="`state` comes with `state` and, if set, `message`, `error` and `result`; `progress` with "
        "the fields of a job's progress; `log` with `level` and `message`."
    )
    job: str = Field(description="Id of the job.")
    time: float = Field(description="Unix time in seconds.")
