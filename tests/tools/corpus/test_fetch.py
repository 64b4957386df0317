"""Fetching through the user's own tools, of which there are stand-ins here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from steerserve.core.errors import ConfigError
from steerserve.text.corpus import load_corpus
from tests.tools.corpus.packed import fake_tools, pack_tar
from tools.corpus.fetch import FetchOutcome, fetch_sources
from tools.corpus.manifest import load_manifest

PROSE = "".join(f"On day {word} the ship sailed on through the quiet night and all was well. " for word in "abcdefgh")


def entry(name: str, kind: str, package: str, *more: str) -> str:
    lines = [f"name: {name}", f"kind: {kind}", f'package: "{package}"', "licence: CC0-1.0", 'files: ["*.txt"]']
    lines += ["extract: text", "max_chars: 100000", *more]
    return "  - " + "\n    ".join(lines) + "\n"


class World:
    """An index, the tools that read it, and a manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = fake_tools(folder)
        self.index = folder / "index"
        self.out = folder / "corpus"
        self.manifest = folder / "manifest.yaml"
        self.tales = pack_tar(self.index / "tales.tgz", {"package/a.txt": PROSE.encode(), "package/b.js": b"x"})
        pack_tar(self.index / "songs-doc.deb", {"./usr/share/doc/songs/a.txt": PROSE.replace("ship", "song").encode()})
        for name, suffix in (("wheel", "whl"), ("sdist", "zip")):
            with zipfile.ZipFile(self.index / f"{name}.{suffix}", "w") as archive:
                archive.writestr("a/a.txt", PROSE.replace("ship", name))

    def write(self, *entries: str) -> None:
        self.manifest.write_text("sources:\n" + "".join(entries), encoding="utf-8")

    def fetch(self, max_chars: int | None = None) -> list[FetchOutcome]:
        return list(fetch_sources(load_manifest(self.manifest).sources, self.out, max_chars=max_chars))

    def said(self) -> list[str]:
        path = self.folder / "said"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "tools.corpus", *words, "--manifest", str(self.manifest))
        environ = {**os.environ, **self.environ, "PYTHONPATH": f"{self.environ['PYTHONPATH']}:{Path.cwd()}"}
        return subprocess.run(words, capture_output=True, text=True, check=False, env=environ, cwd=self.folder)


TALES = entry("tales", "npm", "@old/tales", 'version: "1.0.0"')
SONGS = entry("songs", "debian", "songs-doc")
WHEEL = entry("wheel", "pypi", "wheel", 'version: "2.0"')
SDIST = entry("sdist", "pypi", "sdist", 'version: "3.0"')
MISSING = entry("missing", "npm", "missing", 'version: "1.0.0"')


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    (world.index / "tales.tgz").rename(world.index / "old-tales.tgz")
    world.tales = world.index / "old-tales.tgz"
    return world


def test_each_source_becomes_a_file_with_a_record_of_what_it_is(world: World) -> None:
    world.write(TALES, SONGS, WHEEL, SDIST)
    outcomes = world.fetch()
    assert [(one.name, one.state) for one in outcomes] == [
        (name, "fetched") for name in ("tales", "songs", "wheel", "sdist")
    ]
    assert json.loads((world.out / "tales.jsonl").read_text(encoding="utf-8")) == {"text": PROSE.strip()}
    record = json.loads((world.out / "corpus.json").read_text(encoding="utf-8"))["sources"]
    assert record["songs"]["version"] == "1:2.5-1"
    assert record["tales"]["sha256"] == hashlib.sha256(world.tales.read_bytes()).hexdigest()
    assert (record["wheel"]["documents"], record["wheel"]["licence"]) == (1, "CC0-1.0")
    assert load_corpus([world.out]).sources() == {f"{name}.jsonl": 1 for name in ("tales", "songs", "wheel", "sdist")}


def test_the_tools_are_told_to_run_nothing(world: World) -> None:
    world.write(TALES, SONGS, WHEEL)
    world.fetch()
    npm, apt, pip = world.said()
    assert npm.startswith("npm pack @old/tales@1.0.0 --ignore-scripts")
    assert apt == "apt-get -qq download songs-doc"
    assert pip.startswith("pip download --no-deps")


def test_a_source_archive_is_kept_before_pip_can_build_it(world: World) -> None:
    world.write(SDIST)
    (outcome,) = world.fetch()
    assert outcome.state == "fetched"
    assert not (world.folder / "ran").exists()


def test_what_is_there_is_left_alone_until_its_entry_or_the_cap_changes(world: World) -> None:
    world.write(TALES)
    world.fetch()
    assert [one.state for one in world.fetch()] == ["already there"]
    assert len(world.said()) == 1
    world.write(TALES.replace("CC0-1.0", "CC-BY-4.0"))
    assert [one.state for one in world.fetch()] == ["fetched"]
    assert [one.state for one in world.fetch(max_chars=5000)] == ["fetched"]
    (world.out / "tales.jsonl").unlink()
    assert [one.state for one in world.fetch(max_chars=5000)] == ["fetched"]


def test_a_source_that_fails_keeps_none_back_and_leaves_nothing(world: World) -> None:
    world.write(MISSING, TALES)
    failed, fetched = world.fetch()
    assert (failed.state, fetched.state) == ("failed", "fetched")
    assert failed.reason == "npm could not fetch missing: 404 Not Found - missing@1.0.0."
    assert sorted(file.name for file in world.out.iterdir()) == ["corpus.json", "tales.jsonl"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("licence: CC0-1.0", f"licence: CC0-1.0\n    sha256: {'a' * 64}"), "the manifest says aaa"),
        (('files: ["*.txt"]', 'files: ["*.md"]'), "has no text in *.md"),
    ],
)
def test_another_archive_and_one_without_text_are_failures(world: World, change: tuple[str, str], says: str) -> None:
    world.write(TALES.replace(*change))
    (outcome,) = world.fetch()
    assert outcome.state == "failed"
    assert says in outcome.reason


def test_a_missing_tool_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    world.write(TALES, SONGS)
    assert [one.reason for one in world.fetch()] == [
        "npm is missing; it is needed to fetch @old/tales.",
        "apt-get is missing; it is needed to fetch songs-doc.",
    ]


def test_a_record_that_cannot_be_read_and_a_folder_that_cannot_be_made_are_refused(world: World) -> None:
    world.write(TALES)
    world.out.mkdir()
    (world.out / "corpus.json").write_text('{"sources": {"a": {}}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"corpus\.json cannot be read"):
        world.fetch()
    world.out = world.manifest / "corpus"
    with pytest.raises(ConfigError, match="cannot be made"):
        world.fetch()


def test_the_command_fetches_the_others_and_exits_with_2(world: World) -> None:
    world.write(MISSING, TALES, SONGS)
    done = world.command("fetch", "--only", "missing", "--only", "tales", "--max-mb", "0.01")
    assert done.returncode == 2
    assert "missing: failed: npm could not fetch missing" in done.stderr
    assert "tales: fetched, 1 documents" in done.stdout
    assert (world.out / "tales.jsonl").is_file()
    assert not (world.out / "songs.jsonl").exists()
    assert world.command("fetch", "--only", "tales").returncode == 0
    listed = world.command("list")
    assert listed.returncode == 0
    assert "not fetched yet" in listed.stdout


def test_an_unknown_name_is_one_line(world: World) -> None:
    world.write(TALES)
    done = world.command("fetch", "--only", "tale")
    assert done.returncode == 2
    assert done.stderr == "corpus: The manifest has no source 'tale'. Did you mean tales?\n"
