"""Dictionaries of a hub and of SAELens' registry, through the real clients, in a process that knows the stub alone."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.model.norms import measure_norms
from tests.model.hub_stub import watched_hub
from tests.tiny import D_MODEL, tiny_sae_folder

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.runtime import Runtime

REPO = "somebody/dictionaries"
RELEASE, RELEASE_REPO, SAE_ID = "gpt2-small-res-jb", "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre"
WEIGHTS = "sae_weights.safetensors"


REFUSALS = """
import json, sys
from pathlib import Path
from steerserve.core.errors import DictionarySourceError
from steerserve.dictionaries.sources import read_source
from steerserve.dictionaries.weights import SizeLimit
said = {}
for source in sys.argv[1:]:
    try:
        read_source(source, [], SizeLimit(1 << 20))
    except DictionarySourceError as error:
        said[source] = error.message
print(json.dumps(said))
"""


def run(*arguments: str, endpoint: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the stub as its hub, whose address the client reads once, when it is imported."""
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "hub"),
        "STEERSERVE_DICTIONARY_DIRS": str(home / "dictionaries"),
        "STEERSERVE_CACHE_DIR": str(home / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PATH": "",
    }
    command, env = [sys.executable, *arguments], variables | environ
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)


def steerserve(*arguments: str, endpoint: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command about dictionaries."""
    return run("-m", "steerserve", "dictionaries", *arguments, endpoint=endpoint, home=home, **environ)


def refusals(*sources: str, endpoint: str, home: Path) -> dict[str, str]:
    """Return what is said of each source that is refused, all in one process."""
    done = run("-c", REFUSALS, *sources, endpoint=endpoint, home=home)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a repository: two dictionaries, one of another library, a pickle and a large file beside them."""
    folder = tmp_path_factory.mktemp("repository")
    tiny_sae_folder(folder / "layer-0" / "wide", seed=1)
    tiny_sae_folder(folder / "layer-0" / "narrow", d_sae=32)
    for number in range(3):
        (folder / "layer-0" / "wide" / f"notes-{number}.txt").write_text("not fetched", encoding="utf-8")
    (folder / "pickled").mkdir()
    (folder / "pickled" / "ae.pt").write_bytes(b"\x80\x04.")
    (folder / "notes").mkdir()
    (folder / "notes" / "x.txt").write_text("not fetched", encoding="utf-8")
    (folder / "README.md").write_text("not fetched", encoding="utf-8")
    shutil.copytree(folder / "layer-0" / "narrow", folder, dirs_exist_ok=True)
    return folder


@pytest.mark.slow
def test_a_folder_of_a_hub_repository_is_pulled_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    with watched_hub(REPO, repository) as hub:
        done = steerserve("pull", f"hf:{REPO}/layer-0/wide", endpoint=hub.endpoint, home=tmp_path)
        fetched = hub.fetched()
    assert done.returncode == 0, done.stderr
    assert fetched - {"layer-0/config.json"} == {"layer-0/wide/cfg.json", f"layer-0/wide/{WEIGHTS}"}
    folder = tmp_path / "dictionaries" / "dictionaries-layer-0-wide"
    assert (folder / WEIGHTS).read_bytes() == (repository / "layer-0" / "wide" / WEIGHTS).read_bytes()
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert config["metadata"]["steerserve"] == {"source": f"hf:{REPO}/layer-0/wide", "source_sha256": sha256}
    serving = f"steerserve serve --model tiny --dictionary dictionaries-layer-0-wide=path:{folder}"
    assert done.stdout.splitlines()[-1] == f"Serve it with: {serving}"
    assert not list(folder.parent.glob(".*"))


@pytest.mark.slow
def test_the_root_of_a_repository_is_a_folder_too_and_the_cache_serves_without_the_hub(
    repository: Path, tmp_path: Path
) -> None:
    with watched_hub(REPO, repository) as hub:
        online = steerserve("show", f"hf:{REPO}", endpoint=hub.endpoint, home=tmp_path)
    offline = steerserve("show", f"hf:{REPO}", endpoint=hub.endpoint, home=tmp_path)
    assert online.returncode == 0, online.stderr
    assert offline.stdout == online.stdout
    shown = dict(line.split(maxsplit=1) for line in online.stdout.replace("hook point", "hook_point").splitlines())
    assert (shown["hook_point"], shown["features"]) == ("blocks.0.hook_resid_post", "32")
    assert shown["sha256"] == hashlib.sha256((repository / WEIGHTS).read_bytes()).hexdigest()


REFUSED = {
    "hf:somebody/else": "the hub has no repository somebody/else",
    f"hf:{REPO}/layer-9": "lacks the folder or one of its files",
    f"hf:{REPO}/layer-0": "lacks the folder or one of its files",
    f"hf:{REPO}/pickled": "ae.pt, a pickle",
    f"hf:{REPO}/notes": "holds no dictionary",
    "hf:-a/b--c": "not a valid name of a hub repository",
}


@pytest.mark.slow
def test_what_a_hub_does_not_have_is_said_in_a_sentence(repository: Path, tmp_path: Path) -> None:
    with watched_hub(REPO, repository) as hub:
        said = refusals(*REFUSED, endpoint=hub.endpoint, home=tmp_path)
        assert hub.fetched() == set()
    assert {source: hint for source, hint in REFUSED.items() if hint not in said[source]} == {}, said


@pytest.mark.slow
def test_a_file_over_the_limit_is_not_fetched(repository: Path, tmp_path: Path) -> None:
    large = tmp_path / "repository"
    shutil.copytree(repository / "layer-0" / "wide", large)
    os.truncate(large / WEIGHTS, 8 * 1024**2)
    with watched_hub(REPO, large) as hub:
        limit = {"STEERSERVE_MAX_DICTIONARY_BYTES": str(1024**2)}
        done = steerserve("show", f"hf:{REPO}", endpoint=hub.endpoint, home=tmp_path, **limit)
        assert hub.fetched() == set()
    assert "too large" in done.stderr


@pytest.mark.slow
def test_an_unreachable_hub_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = steerserve("show", f"hf:{REPO}", endpoint="http://127.0.0.1:9", home=tmp_path)
    assert done.returncode == 2
    assert "give a bundled: or path: source" in done.stderr
    assert "Traceback" not in done.stderr


# SAELens' registry


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a repository of SAELens' registry with a small dictionary in the form of its first years."""
    folder = tmp_path_factory.mktemp("release")
    sae = tiny_sae_folder(folder / SAE_ID)
    old = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.0.hook_resid_pre",
        "d_in": D_MODEL,
        "d_sae": 96,
        "dtype": "torch.float32",
        "context_size": 128,
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    (sae / "cfg.json").write_text(json.dumps(old), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_release_is_loaded_as_saelens_does_and_its_norms_are_folded(release: Path, tmp_path: Path) -> None:
    source = f"sae_lens:{RELEASE}/{SAE_ID}"
    with watched_hub(RELEASE_REPO, release) as hub:
        shown = steerserve("show", source, endpoint=hub.endpoint, home=tmp_path)
        done = steerserve("pull", source, endpoint=hub.endpoint, home=tmp_path)
        assert hub.fetched() == {f"{SAE_ID}/cfg.json", f"{SAE_ID}/{WEIGHTS}"}
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "dictionaries" / f"{RELEASE}-{SAE_ID}"
    ours, theirs = load_file(folder / WEIGHTS), load_file(release / SAE_ID / WEIGHTS)
    norms = theirs["W_dec"].norm(dim=1)
    torch.testing.assert_close(ours["W_dec"], theirs["W_dec"] / norms[:, None])
    torch.testing.assert_close(ours["b_enc"], theirs["b_enc"] * norms)
    # What is served from the registry and what was pulled from it are the same contents.
    assert hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() in shown.stdout
    metadata = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))["metadata"]
    assert metadata["model_name"] == "gpt2-small"
    assert metadata["hook_name"] == "blocks.0.hook_resid_pre"
    assert metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}


@pytest.mark.slow
def test_a_transcoder_of_a_release_is_pulled_with_both_its_hook_points(llama: Runtime, tmp_path: Path) -> None:
    repo, name = "mwhanna/qwen3-0.6b-transcoders-lowl0", "mwhanna-qwen3-0.6b-transcoders-lowl0/layer_1"
    folder = tmp_path / "release"
    folder.mkdir()
    described = {"d_model": D_MODEL, "d_feature": 64, "batch_size": 128}
    lines = [f"{key}:\n  value: {value}\n" for key, value in described.items()]
    (folder / "wandb-config.yaml").write_text("".join(lines), encoding="utf-8")
    (folder / "config.yaml").write_text("model_name: Qwen/Qwen3-0.6B\n", encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    shapes = {"W_enc": (64, D_MODEL), "b_enc": (64,), "W_dec": (64, D_MODEL), "b_dec": (D_MODEL,)}
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    save_file(weights, folder / "layer_1.safetensors")
    with watched_hub(repo, folder) as hub:
        done = steerserve("pull", f"sae_lens:{name}", endpoint=hub.endpoint, home=tmp_path)
    assert done.returncode == 0, done.stderr

    pulled = next((tmp_path / "dictionaries").iterdir())
    norms = measure_norms(llama.lens)
    loader = DictionaryLoader(llama.lens, ("tiny",), norms, (pulled.parent,), max_bytes=1 << 20)
    dictionary = loader.load("one", f"path:{pulled}", force=True)
    assert (dictionary.read_hook_name, dictionary.hook_name) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    x = torch.randn(9, D_MODEL, generator=generator)
    hidden_pre = x @ weights["W_enc"].T + weights["b_enc"]
    expected = hidden_pre.clamp(min=0) @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(dictionary.decode(x, dictionary.encode(x)), expected, atol=1e-3, rtol=1e-4)


UNLOADABLE = {
    "sae_lens:gpt2-small-hook-z-kk/blocks.0.hook_z": "weights in pickles",
    "sae_lens:goodfire-llama-3.1-8b-instruct/layer_19": "weights in pickles",
    "sae_lens:gpt2-small-res-jp/x": f"did you mean '{RELEASE}'?",
    f"sae_lens:{RELEASE}/blocks.99.hook_resid_pre": "did you mean 'blocks.",
}


@pytest.mark.slow
def test_what_the_registry_does_not_have_or_would_unpickle_is_refused_before_anything_is_fetched(
    release: Path, tmp_path: Path
) -> None:
    missing = f"sae_lens:{RELEASE}/blocks.9.hook_resid_pre"
    with watched_hub(RELEASE_REPO, release) as hub:
        said = refusals(*UNLOADABLE, endpoint=hub.endpoint, home=tmp_path)
        assert hub.asked == []
        assert (
            "lacks the folder or one of its files" in refusals(missing, endpoint=hub.endpoint, home=tmp_path)[missing]
        )
    assert {source: hint for source, hint in UNLOADABLE.items() if hint not in said[source]} == {}, said


def test_every_loader_of_saelens_that_unpickles_is_known() -> None:
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    from steerserve.dictionaries.releases import SAFE_LOADERS

    unpickling = {
        name for name, load in NAMED_PRETRAINED_SAE_LOADERS.items() if "torch.load" in inspect.getsource(load)
    }
    assert NAMED_PRETRAINED_SAE_LOADERS.keys() - unpickling == SAFE_LOADERS
    assert unpickling
