"""A folder of presets: what changes is seen, what breaks keeps its last good version, what leaves is refused."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

import pytest

from steerserve.core.errors import InvalidRequestError, NotFoundError, PresetError, PresetFolderError
from steerserve.presets.library import PresetLibrary
from steerserve.presets.poll import PresetPoll


def text(name: str, scale: float = 1.0, **more: object) -> str:
    lines = [f"name: {name}", *(f"{key}: {value}" for key, value in more.items())]
    return "\n".join([*lines, f"edits: [{{feature: 3, scale: {scale}}}]"]) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "presets"
    path.mkdir()
    return path


@pytest.fixture
def library(folder: Path) -> PresetLibrary:
    return PresetLibrary(folder, model_id="tiny")


def scale_of(library: PresetLibrary, name: str = "formal") -> float | None:
    return library.find(name).edits[0].scale


def test_a_changed_file_is_seen_at_the_next_look(folder: Path, library: PresetLibrary) -> None:
    for scale in (1.0, 2.0, 3.0, 4.0):  # of one length, and quicker than the clock of the file system may tick
        (folder / "formal.yaml").write_text(text("formal", scale))
        assert scale_of(library) == scale
    (folder / "formal.yaml").unlink()
    with pytest.raises(NotFoundError):
        library.find("formal")


def test_a_file_that_is_as_it_was_is_not_read_again(
    folder: Path, library: PresetLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "formal.yaml"
    file.write_text(text("formal"))
    first = library.find("formal")
    monkeypatch.setattr("steerserve.presets.folder._SETTLED_NS", -(10**12))
    assert library.find("formal") is first
    monkeypatch.setattr("steerserve.presets.folder.parse_preset", None)
    monkeypatch.setattr("steerserve.presets.folder.PresetFolder._read", None)
    assert library.find("formal") is first


def test_a_broken_change_keeps_the_last_good_version_and_is_told_once(
    folder: Path, library: PresetLibrary, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "formal.yaml"
    file.write_text(text("formal", 2.0))
    assert scale_of(library) == 2.0
    file.write_text(text("formal", 3.0)[:-9])
    with caplog.at_level(logging.INFO):
        assert [scale_of(library) for _ in range(3)] == [2.0] * 3
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{file}:" in warning
    assert "Its last good version stays in use." in warning
    assert set(library.snapshot().broken) == {"formal"}
    file.write_text(text("formal", 3.0))
    assert scale_of(library) == 3.0
    assert library.snapshot().broken == {}


def test_a_file_that_never_was_good_says_why(folder: Path, library: PresetLibrary) -> None:
    (folder / "formal.yaml").write_text("name: formal\n")
    with pytest.raises(PresetError, match=r"formal\.yaml:1:1: a preset must do something"):
        library.find("formal")
    assert "formal" not in library.snapshot().presets


def test_an_unknown_name_comes_with_the_nearest(folder: Path, library: PresetLibrary) -> None:
    with pytest.raises(NotFoundError, match="There are no presets yet"):
        library.find("formal")
    for name in ("formal", "golden-gate"):
        (folder / f"{name}.yaml").write_text(text(name))
    with pytest.raises(NotFoundError, match=r"Did you mean 'golden-gate'\? The presets are: formal, golden-gate\."):
        library.find("Golden-Gat")


@pytest.mark.parametrize(
    "name", ["My Preset.yaml", "Formal.yaml", "formal.yml", "a@b.yaml", "a+b.yaml", f"{'x' * 65}.yaml"]
)
def test_a_file_of_a_wrong_name_is_broken(folder: Path, library: PresetLibrary, name: str) -> None:
    (folder / name).write_text(text("formal"))
    (message,) = library.snapshot().broken.values()
    assert "rename" in message


def test_other_files_are_passed_over(folder: Path, library: PresetLibrary) -> None:
    for name in ("README.md", ".formal.yaml.swp", ".hidden.yaml", "notes.txt"):
        (folder / name).write_text("x: [")
    (folder / ".previous").mkdir()
    assert library.snapshot().broken == {}


def test_a_preset_of_another_model_is_refused_with_both_names(folder: Path, library: PresetLibrary) -> None:
    (folder / "formal.yaml").write_text(text("formal", model="big"))
    with pytest.raises(PresetError, match=r"'big', and this server serves 'tiny'"):
        library.find("formal")
    assert library.snapshot().usable() == []
    assert library.snapshot().broken == {}
    assert PresetLibrary(folder).find("formal").name == "formal"


def test_links_that_leave_the_folder_are_refused_and_others_followed(
    folder: Path, library: PresetLibrary, tmp_path: Path
) -> None:
    (tmp_path / "outside.yaml").write_text(text("outside"))
    (folder / "outside.yaml").symlink_to(tmp_path / "outside.yaml")
    (folder / "..data").mkdir()
    (folder / "..data" / "inside.yaml").write_text(text("inside"))
    (folder / "inside.yaml").symlink_to("..data/inside.yaml")
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "lost.yaml").symlink_to("nowhere.yaml")
    (folder / "sub.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    snapshot = library.snapshot()
    assert set(snapshot.presets) == {"inside"}
    assert set(snapshot.broken) == {"outside", "loop", "lost", "sub", "pipe"}
    assert "leaves the folder" in snapshot.broken["outside"]
    assert library.text("outside") is None


def test_own_presets_win_over_those_that_come_along(folder: Path, tmp_path: Path) -> None:
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    for name in ("formal", "short"):
        (bundled / f"{name}.yaml").write_text(text(name, 1.0))
    library = PresetLibrary(folder, bundled)
    assert library.put("formal", text("formal", 5.0)) is False
    assert (scale_of(library), scale_of(library, "short")) == (5.0, 1.0)
    assert library.previous("formal") == text("formal", 1.0)
    assert library.snapshot().bundled == {"short"}
    with pytest.raises(InvalidRequestError, match="comes with steerserve"):
        library.delete("short")
    library.delete("formal")
    assert scale_of(library) == 1.0
    (folder / "formal.yaml").write_text("name: [")
    assert scale_of(library) == 1.0
    assert set(library.snapshot().broken) == {"formal"}


def test_what_is_put_is_there_and_the_version_before_is_kept(library: PresetLibrary) -> None:
    assert library.put("formal", text("formal", 1.0)) is True
    assert library.previous("formal") is None
    assert library.put("formal", text("formal", 2.0)) is False
    assert library.put("formal", text("formal", 2.0)) is False
    assert (library.text("formal"), library.previous("formal")) == (text("formal", 2.0), text("formal", 1.0))
    library.delete("formal")
    assert (library.text("formal"), library.previous("formal")) == (None, text("formal", 2.0))
    with pytest.raises(NotFoundError):
        library.delete("formal")


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".", "", "/etc/passwd", "A", ".hidden", "a\0b", "a\n"])
def test_names_that_leave_the_folder_are_refused(library: PresetLibrary, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="not a name for a preset"):
        library.put(name, text("formal"))
    with pytest.raises(NotFoundError):
        library.delete(name)
    assert library.text(name) is None
    assert library.previous(name) is None
    with pytest.raises(NotFoundError):
        library.find(name)


def test_a_link_in_place_of_the_kept_versions_is_refused(folder: Path, library: PresetLibrary, tmp_path: Path) -> None:
    (folder / ".previous").symlink_to(tmp_path)
    library.put("formal", text("formal", 1.0))
    with pytest.raises(PresetFolderError, match="is a link"):
        library.put("formal", text("formal", 2.0))
    assert scale_of(library) == 1.0


def test_a_folder_that_cannot_be_written_is_an_error_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "presets").write_text("a file")
    library = PresetLibrary(tmp_path / "presets")
    with pytest.raises(PresetFolderError, match="cannot be written"):
        library.put("formal", text("formal"))
    assert "cannot be read" in library.snapshot().broken["."]


def test_texts_put_at_once_never_mix(library: PresetLibrary) -> None:
    texts = [text("formal", place) + f"# {str(place) * 2000}\n" for place in range(8)]
    threads = [threading.Thread(target=library.put, args=("formal", one)) for one in texts for _ in range(3)]
    for thread in threads:
        thread.start()
    seen = {library.text("formal") for _ in range(50)}
    for thread in threads:
        thread.join()
    assert seen | {library.text("formal"), library.previous("formal")} <= {None, *texts}
    assert [file.name for file in library.folder.iterdir() if file.name.startswith(".formal")] == []


def test_a_put_that_fails_keeps_what_was_kept(
    folder: Path, library: PresetLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scale in (1.0, 2.0):
        library.put("formal", text("formal", scale))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(descriptor))

    monkeypatch.setattr("steerserve.core.files.os.fsync", full)
    with pytest.raises(PresetFolderError, match="No space left") as caught:
        library.put("formal", text("formal", 3.0))
    assert str(folder) not in caught.value.message
    assert (library.text("formal"), library.previous("formal")) == (text("formal", 2.0), text("formal", 1.0))
    assert sorted(file.name for file in folder.iterdir()) == [".previous", "formal.yaml"]


def test_a_file_that_goes_while_it_is_deleted_is_not_there(
    folder: Path, library: PresetLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.put("formal", text("formal"))
    keep = PresetLibrary._keep

    def slow(self: PresetLibrary, name: str, content: str) -> None:
        keep(self, name, content)
        (folder / "formal.yaml").unlink()

    monkeypatch.setattr(PresetLibrary, "_keep", slow)
    with pytest.raises(NotFoundError, match="no preset 'formal'"):
        library.delete("formal")
    assert library.previous("formal") == text("formal")


def test_a_folder_in_place_of_a_file_is_said_and_costs_no_descriptor(folder: Path, library: PresetLibrary) -> None:
    (folder / "formal.yaml").mkdir()
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        assert "it is a folder" in PresetLibrary(folder).snapshot().broken["formal"]
    assert len(list(descriptors.iterdir())) == before
    for call in (lambda: library.put("formal", text("formal")), lambda: library.delete("formal")):
        with pytest.raises(PresetError, match=r"^formal\.yaml in the folder of presets is itself a folder"):
            call()
    assert [file.name for file in folder.iterdir()] == ["formal.yaml"]


def test_a_pipe_in_place_of_the_version_before_is_none(folder: Path, library: PresetLibrary) -> None:
    library.put("formal", text("formal"))
    (folder / ".previous").mkdir()
    os.mkfifo(folder / ".previous" / "formal.yaml")
    assert (library.has_previous("formal"), library.previous("formal")) == (False, None)
    library.put("formal", text("formal", 2.0))
    assert (library.has_previous("formal"), library.previous("formal")) == (True, text("formal"))


def test_the_text_of_a_preset_is_read_without_parsing_any(
    folder: Path, library: PresetLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "formal.yaml").write_text(text("formal"))
    monkeypatch.setattr("steerserve.presets.folder.parse_preset", None)
    assert library.text("formal") == text("formal")


def test_a_poll_looks_until_it_is_stopped_whatever_goes_wrong(caplog: pytest.LogCaptureFixture) -> None:
    looks = threading.Semaphore(0)

    def look() -> None:
        looks.release()
        raise OSError

    poll = PresetPoll(look, interval_s=0.001)
    poll.start()
    poll.start()
    assert all(looks.acquire(timeout=10) for _ in range(3))
    poll.stop()
    poll.stop()
    assert "checking the presets failed" in caplog.text
