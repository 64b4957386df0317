"""What is asked of `/admin/train` and `/admin/interpret`, and jobs as the routes under `/admin/jobs` give them."""

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


class TrainRequest(StrictRequestModel):
    """One dictionary to train, or with a list in `hook` or `d_sae` one for each pair of them, all in one pass."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the dictionary; of several, what their names begin with.",
        examples=["res20"],
    )
    model: str | None = Field(
        default=None, description="The served model, which is the only one that can be trained on."
    )
    hook: (
        Annotated[
            Annotated[Hook, Tag("one")] | Annotated[list[Hook], Field(min_length=1, max_length=MAX_HOOKS), Tag("many")],
            Discriminator(_how_many),
        ]
        | None
    ) = Field(
        default=None,
        description="A hook point, or several. Default: the residual stream after about three blocks in five.",
        examples=["blocks.17.hook_resid_post"],
    )
    architecture: Architecture = Field(default="batchtopk", description="The kind of autoencoder.")
    d_sae: Annotated[
        Annotated[Width, Tag("one")] | Annotated[list[Width], Field(min_length=1, max_length=MAX_WIDTHS), Tag("many")],
        Discriminator(_how_many),
    ] = Field(default=4096, description="Number of features, or several.")
    k: int | None = Field(
        default=None,
        ge=1,
        le=MAX_D_SAE,
        description="Active features a token; the TopK family and matching pursuit. Default 32.",
    )
    l1_coefficient: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="Weight of the sparsity penalty; standard, gated and jumprelu. Default 5.",
    )
    tokens: int = Field(default=1_000_000, ge=16, le=MAX_TOKENS, description="Tokens of text to train on.")
    epochs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="How often each is seen. Default: 6 from the disk, 1 through the buffer.",
    )
    corpus: Annotated[
        Annotated[CorpusEntry, Tag("one")]
        | Annotated[list[CorpusEntry], Field(min_length=1, max_length=MAX_CORPORA), Tag("many")],
        Discriminator(_how_many),
    ] = Field(
        default="self",
        description="`self` (text that the model writes), `path:FOLDER_OR_FILE` below one of `corpus_dirs`, or "
        "`hf:OWNER/NAME[@CONFIG][:SPLIT]`; or several of them.",
    )
    batch_size: int | None = Field(
        default=None, ge=16, le=2**17, description="Tokens a step; 2048 if left out, down to 512 in a short run."
    )
    lr: float = Field(default=8e-4, gt=0, lt=1, description="Adam's learning rate.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Of the first weights and the order of the tokens.")
    resample: bool | Annotated[list[Share], Field(max_length=MAX_SHARES)] | None = Field(
        default=None,
        description="Shares of the run after which dead features are begun anew; true: the usual ones, false: never. "
        "Default: as is usual for the architecture.",
    )
    dtype: SavedDtype = Field(default="float32", description="Of the saved weights.")
    context_size: int = Field(default=128, ge=16, le=2**20, description="Tokens a window of text.")
    storage: Storage = Field(
        default="disk",
        description="`disk` keeps all activations; `buffer` some, in memory, and computes each epoch anew.",
    )
    load: bool = Field(default=False, description="Serve the result as soon as it is there.")


class InterpretRequest(StrictRequestModel):
    """Dictionaries whose features are to be found out about, all in one pass over a text."""

    dictionary: str | None = Field(
        default=None,
        max_length=200,
        description="One that is loaded. Default: the first, where `dictionaries` names none either.",
    )
    dictionaries: Annotated[list[str], Field(min_length=1, max_length=MAX_INTERPRETED)] | None = Field(
        default=None, description="Several that are loaded, in place of `dictionary`."
    )
    model: str | None = Field(default=None, description="The served model, which is the only one that is read.")
    tokens: int = Field(
        default=DEFAULT_INTERPRET_TOKENS,
        ge=1,
        le=MAX_INTERPRET_TOKENS,
        description="Tokens of text that are read, special ones not counted.",
    )
    corpus: Annotated[
        Annotated[CorpusEntry, Tag("one")]
        | Annotated[list[CorpusEntry], Field(min_length=1, max_length=MAX_CORPORA), Tag("many")],
        Discriminator(_how_many),
    ] = Field(default="self", description="As for `/admin/train`.")
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="Of text that the model writes, and of a data set's order."
    )
    context_size: int = Field(default=128, ge=16, le=2**20, description="Tokens a window of text.")
    calibrate: bool = Field(
        default=True,
        description="Measure too at what dose a feature changes what the model says, and what it writes.",
    )


class JobObject(ResponseModel):
    """One piece of work beside serving."""

    id: str = Field(description="Names the job.")
    kind: JobKind = Field(description="What is done.")
    state: JobState = Field(description="`done`, `failed` and `cancelled` are for good.")
    progress: dict[str, Any] = Field(
        description="What the worker told last: `stage`, `done`, `total` and `eta_s` (of the stage), and while it "
        "trains `step`, `num_steps`, `tokens`, `tokens_per_s`, `losses`, `explained_variance`, `l0`, `dead_fraction` "
        "and `resampled`; of several dictionaries the last five by id under `dictionaries`."
    )
    error: str | None = Field(description="Why it failed.")
    result: dict[str, Any] | None = Field(
        description="What came out: `dictionaries` with `id`, `source` and `report`; with `load` also `loaded` (ids), "
        "and `load_error` where one could not be loaded. Of an interpretation: `dictionaries` with `id`, `source`, "
        "`sha256`, `store`, `num_tokens`, `num_features`, `num_live`, `num_labelled` and `num_calibrated`."
    )
    created: int = Field(description="Unix time in seconds.")
    started: int | None = Field(description="Unix time in seconds at which it ran first.")
    ended: int | None = Field(description="Unix time in seconds.")


class JobList(ResponseModel):
    """Jobs, the newest first."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[JobObject] = Field(description="The jobs.")
    has_more: bool = Field(description="Whether `limit` cut the list.")


class JobEventObject(ResponseModel):
    """One event of a job's stream; what else it holds depends on its type."""

    seq: int = Field(description="Counts up within the job; events that were dropped are missing.")
    type: JobEventType = Field(
        description="`state` comes with `state` and, where there is any, `message`, `error` and `result`; `progress` "
        "with the fields of a job's progress; `log` with `level` and `message`."
    )
    job: str = Field(description="The job's id.")
    time: float = Field(description="Unix time in seconds.")
