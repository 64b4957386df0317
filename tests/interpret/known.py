"""Features with everything that an interpretation can record, small enough to check by hand. A token id is its byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.store.records import Activity, FeatureRecord, Label, TextSnippet
from steerserve.store.stored import StoreMeta

if TYPE_CHECKING:
    from collections.abc import Sequence

SHA = "a" * 64
META = StoreMeta(
    dictionary_sha256=SHA,
    d_sae=16,
    model="tiny",
    num_tokens=1000,
    sources=("path:corpus",),
    versions={"steerserve": "0"},
    created=12.5,
)


def byte_of(token_id: int) -> bytes:
    return bytes([token_id])


def snippet(text: str, peak: int, *, act: float = 2.0, interval: int | None = None) -> TextSnippet:
    """Give a snippet over `text` that is active at `peak` alone."""
    ids = tuple(text.encode())
    acts = tuple(act if place == peak else 0.0 for place in range(len(ids)))
    return TextSnippet(ids, acts, peak, interval)


def feature(
    number: int,
    texts: Sequence[str] = ("a bridge",),
    *,
    label: str | None = None,
    promoted: str = "",
    active: int = 10,
    maximum: float = 2.0,
) -> FeatureRecord:
    """Give a feature that peaks at the last token of each text."""
    return FeatureRecord(
        feature=number,
        activity=Activity(
            num_tokens=META.num_tokens,
            num_active=active,
            maximum=maximum,
            mean=maximum / 2,
            quantiles=(0.5, 0.75, 1.0, 1.5, 2.0),
            histogram=tuple(range(64)),
        ),
        snippets=tuple(
            snippet(text, len(text.encode()) - 1, act=maximum, interval=None if place == 0 else place % 5)
            for place, text in enumerate(texts)
        ),
        peak_tokens=((ord("e"), 7), (ord(" "), 2)),
        promoted=tuple((token_id, 3.0) for token_id in promoted.encode()),
        suppressed=((ord("z"), -2.5),),
        neighbours=(((number + 1) % META.d_sae, 0.5),),
        labels=(Label(label, "words", 0.75, 3.0),) if label is not None else (),
    )
