"""A tiny model with a sink, dictionaries of it, text, and what is to be found in it, counted one token at a time."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.model.norms import SINK_RATIO, measure_norms
from steerserve.text.files import Document
from steerserve.text.windows import Windower, batch_windows
from tests.tiny import HOOK_NAME, planted_sae_folder, tiny_llama_folder, tiny_sae_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel
    from steerserve.text.windows import WindowBatch

SINK = "~"
"""The one byte whose embedding is so long that its token is a sink."""
READ, WRITTEN = "q", "Z"
"""What the planted feature fires on, and what it writes; no text here but that of its test has either."""
EMBEDDINGS = "blocks.0.hook_resid_pre"
CONTEXT = 64
_THRESHOLD = 2.4
"""Embeddings have a norm of about 3.5, and hardly ever a component over this along another one."""


def sink_model_folder(path: Path) -> Path:
    """Write a tiny Llama in which `~` is a sink; returns `path`."""
    folder = tiny_llama_folder(path)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][ord(SINK)] *= 100
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def planted_folder(path: Path, lens: LensModel) -> Path:
    """Write a dictionary of the embeddings whose feature 0 fires on `q` and writes `Z`; the others are dead."""
    planted_sae_folder(path, d_sae=8, hook_name=EMBEDDINGS)
    weights = load_file(path / "sae_weights.safetensors")
    hf_model: Any = lens.weights
    embedding = hf_model.get_input_embeddings().weight[ord(READ)]
    written = hf_model.get_output_embeddings().weight[ord(WRITTEN)] / lens.unembedding.gain
    weights["W_enc"].zero_()
    weights["W_enc"][:, 0] = embedding / embedding.norm()
    weights["b_enc"].fill_(-1.0)
    weights["b_enc"][0] = -_THRESHOLD
    weights["W_dec"][0] = written / written.norm()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path / "sae_weights.safetensors")
    return path


def loader_of(lens: LensModel, folder: Path) -> DictionaryLoader:
    """Return a loader of dictionaries below a folder."""
    return DictionaryLoader(lens, ("tiny",), measure_norms(lens), (folder,), 1 << 30)


def dictionary_of(
    lens: LensModel, folder: Path, hook_name: str = HOOK_NAME, seed: int = 0, architecture: str = "standard"
) -> Dictionary:
    """Write and load a random dictionary; that of an `abstopk` has activations below 0."""
    path = folder / f"{architecture}-{hook_name}-{seed}"
    written: Any = "topk" if architecture == "abstopk" else architecture
    tiny_sae_folder(path, written, d_sae=24, hook_name=hook_name, seed=seed)
    config = json.loads((path / "cfg.json").read_text(encoding="utf-8"))
    (path / "cfg.json").write_text(json.dumps(config | {"architecture": architecture}), encoding="utf-8")
    return loader_of(lens, folder).load(path.name, f"path:{path}")


def texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of random words, sinks among them, that are a little longer than a row or much shorter."""
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefgh", k=4)) for _ in range(40)]
    return [" ".join(source.choices([*words, SINK], k=source.choice([3, 8, 16]))) for _ in range(count)]


def batches_of(lens: LensModel, some: Sequence[str], batch_tokens: int = 256) -> Iterator[WindowBatch]:
    """Return the batches of some texts."""
    windows = Windower(lens.tokenizer, CONTEXT).windows([Document("t", text=text) for text in some])
    return batch_windows(windows, lens.tokenizer.special_ids, batch_tokens)


@dataclass
class Counted:
    """What one feature did."""

    acts: list[float] = field(default_factory=list)
    peaks: list[tuple[float, int, tuple[int, ...]]] = field(default_factory=list)
    """Of each row where it was active: the activation, the token, and the text nearby."""
    windows: dict[tuple[int, ...], set[float]] = field(default_factory=dict)
    """Its activations at the peak of each window that it could have."""


@torch.no_grad()
def count(lens: LensModel, dictionary: Dictionary, batches: Iterator[WindowBatch]) -> tuple[int, list[Counted]]:
    """Return the number of tokens and what each feature did, by the plainest means."""
    num_tokens, found = 0, [Counted() for _ in range(dictionary.d_sae)]
    for batch in batches:
        read = lens.read(batch.ids, [dictionary.hook_name])[dictionary.hook_name]
        keep = batch.is_plain & (read.norm(dim=-1) <= SINK_RATIO * dictionary.median_norm)
        acts = dictionary.encode(read.reshape(-1, read.shape[-1])).view(*read.shape[:2], -1) * keep[..., None]
        num_tokens += int(keep.sum())
        for row in range(len(batch.ids)):
            length = int(batch.is_real[row].sum())
            ids = batch.ids[row, :length].tolist()
            for feature, counted in enumerate(found):
                values = acts[row, :length, feature].tolist()
                active = [(act, -place) for place, act in enumerate(values) if act > 0]
                counted.acts += [act for act, _ in active]
                for act, place in active:
                    counted.windows.setdefault(_around(ids, -place, 20), set()).add(act)
                if active:
                    act, place = max(active)
                    counted.peaks.append((act, ids[-place], mark_of(ids, -place)))
    return num_tokens, found


def mark_of(ids: Sequence[int], place: int) -> tuple[int, ...]:
    """Return the text near a token, and where in it the token is."""
    return min(place, 10), *_around(ids, place, 10)


def _around(ids: Sequence[int], place: int, reach: int) -> tuple[int, ...]:
    return tuple(ids[max(place - reach, 0) : place + reach + 1])
