"""A tiny model with one planted sink, and text to train on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_llama_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from steerserve.model.lens import LensModel

SINK = "~"
"""The one byte whose embedding is so long that its token is a sink at every hook point."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on more threads, much slower where others use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sink_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama in which `~` is a sink."""
    folder = tiny_llama_folder(tmp_path_factory.mktemp("model"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][ord(SINK)] *= 100
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def sink_lens(sink_model: Path) -> LensModel:
    """Return that model, loaded."""
    from steerserve.model.lens import load_lens
    from steerserve.model.source import fetch_model

    return load_lens(fetch_model(str(sink_model)), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def embeddings(sink_model: Path) -> NDArray[np.float32]:
    """Return the model's token embeddings, which are its residual stream before the first block."""
    table: NDArray[np.float32] = load_file(sink_model / "model.safetensors")["model.embed_tokens.weight"].numpy()
    return table


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """Return a folder with documents of random words, sinks among them."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghij", k=4)) for _ in range(60)]
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(60):
        text = " ".join(generator.choices([*words, SINK], k=40))
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder
