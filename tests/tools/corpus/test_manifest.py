"""A manifest is checked before anything is fetched, and a complaint says where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from steerserve.core.errors import ConfigError
from tools.corpus.manifest import SHIPPED, Extractor, load_manifest

ENTRY = """\
  - name: tales
    kind: npm
    package: old-tales
    version: "1.0.0"
    licence: CC0-1.0
    files: [package/*.txt]
    extract: text
    max_chars: 5000
"""


def written(folder: Path, entries: str) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(f"sources:\n{entries}", encoding="utf-8")
    return path


def test_the_manifest_beside_the_tool_is_valid_and_pins_what_can_be_pinned() -> None:
    sources = load_manifest().sources
    assert {source.kind for source in sources} == {"npm", "debian", "pypi"}
    assert all(source.version and source.sha256 for source in sources if source.kind != "debian")
    assert {"sentences", "brown", "python", "perl", "git", "fortunes", "debian", "questions"} <= {
        source.name for source in sources
    }


def test_the_manifest_names_no_place_on_the_network() -> None:
    assert not re.search(r"://|\.(com|org|net|io)\b", SHIPPED.read_text(encoding="utf-8"))


def test_every_extractor_is_used_by_a_source() -> None:
    assert {source.extract for source in load_manifest().sources} == set(get_args(Extractor))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kind: npm", "kind: cargo", r":3:5: sources.0.kind: .*'npm', 'debian' or 'pypi'"),
        ("    licence: CC0-1.0\n", "", r":2:5: sources.0.licence is missing"),
        ("licence:", "license:", r":6:5: sources.0.license is not a field; the fields are name, .*licence"),
        ('"1.0.0"', "1.0", r":5:5: sources.0.version: text is needed \(put quotes around a number\)"),
        ("package: old-tales", "package: --prefix", r":2:5: .*'--prefix' is not a name that a package of npm can have"),
        ("package: old-tales", "package: ../tales", r":2:5: .*'../tales' is not a name that a package of npm can have"),
        ("package: old-tales", 'package: "file:tales"', r"not a name that a package of npm can have"),
        ('    version: "1.0.0"\n', "", r"tales has no version, which only a source of kind debian may leave out"),
        ("files: [package/*.txt]", "files: package/*.txt", r":7:5: sources.0.files: a list is needed"),
        ("max_chars: 5000", "max_chars: 5", r":9:5: sources.0.max_chars: .*1000"),
        ("extract: text", "extract: text\n    field: body", r"only the extractor json reads"),
        ("name: tales", "name: ../tales", r":2:5: sources.0.name"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_line_and_column(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in ENTRY
    with pytest.raises(ConfigError, match=says):
        load_manifest(written(tmp_path, ENTRY.replace(old, new)))


def test_two_sources_of_one_name_are_refused_for_they_would_share_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":10:5: two sources have the name tales"):
        load_manifest(written(tmp_path, ENTRY + ENTRY))


def test_a_manifest_without_sources_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_text("- one\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="the manifest: a mapping of names to values is needed"):
        load_manifest(path)


def test_sources_are_chosen_by_name_and_a_wrong_name_is_told_the_nearest(tmp_path: Path) -> None:
    manifest = load_manifest(written(tmp_path, ENTRY + ENTRY.replace("tales", "songs")))
    assert [source.name for source in manifest.choose(())] == ["tales", "songs"]
    assert [source.name for source in manifest.choose(["songs"])] == ["songs"]
    with pytest.raises(ConfigError, match="Did you mean songs"):
        manifest.choose(["song"])


def test_the_documented_manifest_is_valid_and_every_extractor_is_documented(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "tools" / "corpus" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(sources:.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "manifest.yaml"
    path.write_text(example, encoding="utf-8")
    (source,) = load_manifest(path).sources
    assert source in load_manifest().sources
    assert set(re.findall(r"^\| `(\w+)` \| ", page.split("| `extract` |")[1], flags=re.MULTILINE)) >= set(
        get_args(Extractor)
    )
