"""`steerserve interpret` from the command line to the store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steerserve.cli import app
from steerserve.commands.interpret import _names
from steerserve.core.errors import ConfigError, CorpusError, DictionarySourceError
from steerserve.core.lock import FileLock
from steerserve.jobs.work import prepare_and_interpret
from steerserve.model.lens import load_lens
from steerserve.store.store import FeatureStore
from tests.interpret.clever import Clever, answering
from tests.tiny import tiny_llama_folder, tiny_sae_folder


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    model = tiny_llama_folder(tmp_path / "tiny")
    folder = tiny_sae_folder(tmp_path / "somewhere" / "res0")
    source = random.Random(0)
    (tmp_path / "text").mkdir()
    for number in range(9):
        words = " ".join("".join(source.choices("abcdefgh", k=4)) for _ in range(20))
        (tmp_path / "text" / f"{number}.txt").write_text(words, encoding="utf-8")
    given = ["--corpus", "text", "--model", str(model), "--device", "cpu", "--tokens", "500", "--threads", "1"]
    return ["interpret", f"path:{folder}", *given, "--no-calibrate"]


def test_a_dictionary_is_interpreted_and_what_came_out_is_said(arguments: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    path = tmp_path / "somewhere" / "res0" / "features.sqlite3"
    store = FeatureStore.open(path)
    assert store.meta().num_tokens == 500
    assert f"of 96 features active in 500 tokens, {store.counts().num_labelled} labelled ({path})" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("bound", ["--label-limit", "--label-budget-tokens"])
def test_labels_by_a_model_are_bounded(arguments: list[str], tmp_path: Path, bound: str) -> None:
    other = tiny_sae_folder(tmp_path / "somewhere" / "res1", seed=1)
    with answering(Clever(says="words")) as url:
        done = CliRunner().invoke(app, [*arguments, f"path:{other}", "--label-with", url, "clever", bound, "3"])
    assert done.exit_code == 0, done.output
    found = []
    for name in ("res0", "res1"):
        store = FeatureStore.open(tmp_path / "somewhere" / name / "features.sqlite3")
        known = [store.feature(number) for number in store.feature_numbers()]
        found.append(sum(label.origin == "llm" for one in known if one is not None for label in one.labels))
    if bound == "--label-limit":
        assert found == [3, 3]
    else:  # as many features are begun as there are requests at a time; and it is one budget
        assert 1 <= found[0] <= 4
        assert found[1] == 0


@pytest.mark.parametrize(
    ("change", "error"), [((1, "path:nowhere"), DictionarySourceError), ((3, "nowhere"), CorpusError)]
)
def test_what_is_not_there_is_an_error_of_the_start(
    arguments: list[str], change: tuple[int, str], error: type[Exception]
) -> None:
    arguments[change[0]] = change[1]
    assert isinstance(CliRunner().invoke(app, arguments).exception, error)


def test_two_runs_at_a_time_on_the_same_dictionaries_are_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def taken_first(options: object, observer: object) -> object:
        lock = FileLock(options.run_dir.with_suffix(".lock"))  # type: ignore[attr-defined]
        lock_folder = tmp_path / "dictionaries" / ".features"
        lock_folder.mkdir(parents=True)
        assert lock.acquire()
        taken.append(lock)
        return prepare_and_interpret(options, observer)  # type: ignore[arg-type]

    monkeypatch.setattr("steerserve.jobs.work.prepare_and_interpret", taken_first)
    done = CliRunner().invoke(app, arguments)
    taken[0].release()
    assert "Another process interprets res0" in str(done.exception)


def test_sources_have_short_names_that_differ() -> None:
    sources = [
        "bundled:smol/res17",
        "path:other/res17/",
        "sae_lens:gpt2-small-res-jb/blocks.7.hook_resid_pre",
        "hf:a/b",
    ]
    assert _names(sources) == ["res17", "res17-1", "blocks.7.hook_resid_pre", "b"]


def test_another_backend_reads_the_same_text(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def seen(*args: object, **kwargs: object) -> object:
        chosen.append((kwargs["backend"], kwargs["process_weights"]))
        return load_lens(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("steerserve.model.opening.load_lens", seen)
    done = CliRunner().invoke(app, [*arguments, "--backend", "hooked_transformer", "--no-process-weights"])
    assert done.exit_code == 0, done.output
    assert chosen == [("hooked_transformer", False)]
    assert FeatureStore.open(tmp_path / "somewhere" / "res0" / "features.sqlite3").meta().num_tokens == 500


def test_an_unknown_backend_is_refused(arguments: list[str]) -> None:
    error = CliRunner().invoke(app, [*arguments, "--backend", "numpy"]).exception
    assert isinstance(error, ConfigError)
    assert error.param == "backend"
