"""What an archive may hold: files that match, and nothing that leads out of it or fills the memory."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from steerserve.core.errors import CorpusError
from tests.tools.corpus.packed import fake_tools, pack_tar
from tools.corpus.archives import Limits, read_members


def test_files_are_read_by_pattern_and_those_that_are_compressed_are_unpacked(tmp_path: Path) -> None:
    archive = pack_tar(
        tmp_path / "a.tgz",
        {
            "./package/one.txt": b"one",
            "./package/deep/two.txt": b"two",
            "./package/three.txt.gz": gzip.compress(b"three"),
            "./package/four.md": b"four",
            "./package/index.txt": b"left out",
        },
    )
    found = {member.name: member.content for member in read_members(archive, ["package/*.txt*"], ["*/index.txt"])}
    assert found == {"package/one.txt": b"one", "package/deep/two.txt": b"two", "package/three.txt.gz": b"three"}


@pytest.mark.parametrize("suffix", [".zip", ".whl"])
def test_zips_are_read_in_the_same_way(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"a{suffix}"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/", b"")
        file.writestr("a/one.txt", b"one")
    assert [tuple(member) for member in read_members(archive, ["*"])] == [("a/one.txt", b"one")]


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd", "a/../../out.txt", "..\\out.txt"])
def test_a_path_that_leads_out_is_refused_in_a_tar_and_in_a_zip(tmp_path: Path, name: str) -> None:
    tar = pack_tar(tmp_path / "a.tgz", {name: b"x"})
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr(name, b"x")
    for archive in (tar, packed):
        with pytest.raises(CorpusError, match="leads out of it"):
            list(read_members(archive, ["*"]))


def test_links_devices_and_pipes_are_passed_over(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name, kind in (
            ("a", tarfile.SYMTYPE),
            ("b", tarfile.LNKTYPE),
            ("c", tarfile.CHRTYPE),
            ("d", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname = "/etc/passwd"
            file.addfile(entry)
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as zipped:
        link = zipfile.ZipInfo("a")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    assert not list(read_members(archive, ["*"]))
    assert not list(read_members(packed, ["*"]))


def test_a_file_that_unpacks_to_more_than_text_can_be_is_refused(tmp_path: Path) -> None:
    limits = Limits(file_bytes=1000)
    bombs = {
        "plain": pack_tar(tmp_path / "plain.tgz", {"a": bytes(2000)}),
        "inner": pack_tar(tmp_path / "inner.tgz", {"a.gz": gzip.compress(bytes(2000))}),
        "zip": tmp_path / "a.zip",
    }
    with zipfile.ZipFile(bombs["zip"], "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(2000))
    for archive in bombs.values():
        with pytest.raises(CorpusError, match="is larger than"):
            list(read_members(archive, ["*"], limits=limits))


def test_files_that_nobody_asked_for_count_too(tmp_path: Path) -> None:
    archive = pack_tar(tmp_path / "a.tgz", {f"{number}.bin": bytes(100) for number in range(20)})
    for limits in (Limits(total_bytes=1000), Limits(num_files=10)):
        with pytest.raises(CorpusError, match="the most that a package of text may have"):
            list(read_members(archive, ["*.txt"], limits=limits))


@pytest.mark.parametrize("name", ["a.tgz", "a.zip", "a.deb"])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_tools(tmp_path)["PATH"])
    archive = tmp_path / name
    whole = pack_tar(tmp_path / "whole.tgz", {"a": os.urandom(3000)}).read_bytes()
    for content in (os.urandom(3000), whole[:1500], b""):
        archive.write_bytes(content)
        with pytest.raises(CorpusError, match=f"{name} cannot be read"):
            list(read_members(archive, ["*"]))


def test_a_debian_package_needs_dpkg_deb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CorpusError, match="dpkg-deb is missing"):
        list(read_members(pack_tar(tmp_path / "a.deb", {"a": b"1"}), ["*"]))


@pytest.mark.parametrize("name", ["a.tgz", "a.deb"])
def test_reading_may_end_early(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_tools(tmp_path)["PATH"])
    members = read_members(pack_tar(tmp_path / name, {"a": b"1", "b": os.urandom(10**6)}), ["*"])
    assert next(members).content == b"1"
    members.close()
