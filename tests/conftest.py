"""Two tiny models with dictionaries of every architecture, built once for all tests that generate."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.shapes.hook import install_shape_checks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from steerserve.runtime import Runtime
    from tests.oracle import Oracle
    from tests.tiny import Architecture

install_shape_checks()  # before anything of the package is imported

SINK = "~"
"""The one byte whose embedding is so long that its token is a sink at every hook point of the Llama."""

VARIANTS = {"normalised": {"normalize_activations": "layer_norm"}, "raw": {"apply_b_dec_to_input": False}}
"""Dictionaries that treat their input otherwise than the standard one."""


LONGEST_ID = 120
"""Longest name of a test, its parameters included."""
LONGEST_VALUE = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Divide what the test's own name leaves of `LONGEST_ID` among its parameters."""
    names = [name for mark in metafunc.definition.iter_markers("parametrize") for name in split_names(mark.args[0])]
    left = LONGEST_ID - len(metafunc.function.__name__) - len("[]")
    metafunc.config.stash[LONGEST_VALUE] = left // max(len(names), 1) - len("-")


def split_names(names: str | Sequence[str]) -> Sequence[str]:
    return names.split(",") if isinstance(names, str) else names


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Shorten texts, bytes and numbers that would fill screens; their hash keeps them apart."""
    del argname
    if not isinstance(val, str | bytes | int) or isinstance(val, bool):
        return None  # as pytest names it
    shown = val if isinstance(val, str) else repr(val)
    longest = config.stash[LONGEST_VALUE]
    if len(shown.encode("ascii", "backslashreplace")) <= longest:
        return None
    plain = "".join(character for character in shown[:longest] if character.isascii() and character.isprintable())
    digest = hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{plain[: longest - 5]}~{digest[:4]}"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Take back what a command or a server set up: its handler would write to a stream that is closed by then."""
    names = ["", "steerserve", "uvicorn", "uvicorn.access"]
    before = [(log, log.handlers[:], log.level, log.propagate) for log in map(logging.getLogger, names)]
    yield
    logging.captureWarnings(capture=False)
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)  # not by hand: loggers remember which levels are on


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the tiny models; in the Llama `~` is a sink."""
    from safetensors.torch import load_file, save_file

    from tests.tiny import tiny_gpt2_folder, tiny_llama_folder

    root = tmp_path_factory.mktemp("models")
    llama = tiny_llama_folder(root / "llama")
    weights = load_file(llama / "model.safetensors")
    weights["model.embed_tokens.weight"][ord(SINK)] *= 100
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    folders = {"llama": llama, "gpt2": tiny_gpt2_folder(root / "gpt2")}
    for folder in folders.values():
        # One set of dictionaries, made for "tiny", serves both.
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "tiny"}), encoding="utf-8")
    return folders


@pytest.fixture(scope="session")
def dictionary_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of random dictionaries, the default one first.

    `late` reads the last hook point, `z`, `heads` (which SAELens gives each head by itself) and `mlp`
    read inside blocks.
    """
    from tests.tiny import planted_sae_folder, tiny_sae_folder

    root = tmp_path_factory.mktemp("dictionaries")
    architectures: tuple[Architecture, ...] = ("standard", "topk", "jumprelu", "gated")
    folders: dict[str, Path] = {}
    for seed, name in enumerate(architectures):
        folders[name] = tiny_sae_folder(root / name, name, seed=seed)
    for variant, changed in VARIANTS.items():
        folder = folders[variant] = tiny_sae_folder(root / variant, seed=8)
        config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        (folder / "cfg.json").write_text(json.dumps(config | changed), encoding="utf-8")
    folders["planted"] = planted_sae_folder(root / "planted")
    folders["late"] = tiny_sae_folder(root / "late", hook_name="blocks.1.hook_resid_post", seed=7)
    folders["z"] = tiny_sae_folder(root / "z", hook_name="blocks.0.attn.hook_z", seed=9)
    folders["heads"] = tiny_sae_folder(root / "heads", hook_name="blocks.1.attn.hook_z", seed=11)
    config = json.loads((folders["heads"] / "cfg.json").read_text(encoding="utf-8"))
    (folders["heads"] / "cfg.json").write_text(json.dumps(config | {"reshape_activations": "hook_z"}), encoding="utf-8")
    folders["mlp"] = tiny_sae_folder(root / "mlp", "topk", hook_name="blocks.1.hook_mlp_out", seed=10)
    return folders


def _started(model: Path, dictionaries: dict[str, Path]) -> Iterator[Runtime]:
    from steerserve.core.config import Settings
    from steerserve.runtime import build_runtime

    settings = Settings.model_validate(
        {
            "model": {"source": str(model), "device": "cpu"},
            "dictionaries": [{"id": name, "source": f"path:{path}"} for name, path in dictionaries.items()],
            "engine": {"slots": 4, "context": 128, "prefill_chunk": 16, "queue": 64, "threads": 1},
        }
    )
    with build_runtime(settings) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def llama(model_folders: dict[str, Path], dictionary_folders: dict[str, Path]) -> Iterator[Runtime]:
    """Serve the tiny Llama with all dictionaries."""
    yield from _started(model_folders["llama"], dictionary_folders)


@pytest.fixture(scope="session")
def gpt2(model_folders: dict[str, Path], dictionary_folders: dict[str, Path]) -> Iterator[Runtime]:
    """Serve the tiny GPT-2 with all dictionaries."""
    yield from _started(model_folders["gpt2"], dictionary_folders)


def _oracle(runtime: Runtime, model: Path, dictionaries: dict[str, Path]) -> Oracle:
    from steerserve.model.norms import measure_norms
    from tests.oracle import Oracle

    medians = {name: median for name, (median, _) in measure_norms(runtime.lens).items()}
    medians |= {dictionary.id: dictionary.median_norm for dictionary in runtime.dictionaries()}
    return Oracle(model, dictionaries, medians, special={256, 257, 258})


@pytest.fixture(scope="session")
def llama_oracle(llama: Runtime, model_folders: dict[str, Path], dictionary_folders: dict[str, Path]) -> Oracle:
    """Return the oracle of the tiny Llama."""
    return _oracle(llama, model_folders["llama"], dictionary_folders)


@pytest.fixture(scope="session")
def gpt2_oracle(gpt2: Runtime, model_folders: dict[str, Path], dictionary_folders: dict[str, Path]) -> Oracle:
    """Return the oracle of the tiny GPT-2."""
    return _oracle(gpt2, model_folders["gpt2"], dictionary_folders)
