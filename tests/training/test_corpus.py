"""Documents come from files of three kinds, in an order and on a side that only their content decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerserve.core.errors import CorpusError
from steerserve.training.corpus import Document, load_corpus


def records(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    return records(folder / "all.jsonl", *({"text": f"document {number}"} for number in range(count)))


def test_a_folder_gives_text_markdown_and_both_kinds_of_records(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("plain", encoding="utf-8")
    (tmp_path / "deep" / "b.md").write_text("# marked", encoding="utf-8")
    (tmp_path / "c.py").write_text("not text", encoding="utf-8")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    records(tmp_path / "d.jsonl", {"text": "a\u2028record"}, {"messages": turns})

    corpus = load_corpus([tmp_path])

    found = {document.text or document.messages for document in (*corpus.training, *corpus.heldout)}
    assert found == {"plain", "# marked", "a\u2028record", (("user", "Hi"), ("assistant", "Hello"))}
    assert corpus.sources() == {"a.txt": 1, "b.md": 1, "d.jsonl": 2}


def test_a_long_file_is_cut_at_blank_lines_into_many_documents(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(f"{n} {'x' * 500}" for n in range(40)), encoding="utf-8")
    corpus = load_corpus([tmp_path])
    assert 4 <= len(corpus.training) + len(corpus.heldout) <= 6


def test_held_out_documents_are_apart_and_stay_apart_when_the_corpus_grows(tmp_path: Path) -> None:
    small, large = load_corpus([numbered(tmp_path / "s", 500)]), load_corpus([numbered(tmp_path / "l", 1000)])

    assert not set(small.training) & set(small.heldout)
    assert 10 <= len(small.heldout) <= 45
    assert set(small.heldout) <= set(large.heldout)
    assert small.digest != large.digest


def test_a_repeated_document_counts_once_so_that_no_copy_of_it_is_trained_on(tmp_path: Path) -> None:
    file = numbered(tmp_path / "a", 100)
    other = tmp_path / "b.jsonl"
    other.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")

    once, twice = load_corpus([file]), load_corpus([file, other])

    def texts(documents: tuple[Document, ...]) -> list[str | None]:
        return [document.text for document in documents]

    assert texts(once.training) == texts(twice.training)
    assert texts(once.heldout) == texts(twice.heldout)
    assert once.digest == twice.digest


def test_a_link_leads_out_of_a_folder_only_where_all_may_be_read(tmp_path: Path) -> None:
    numbered(tmp_path / "text", 5)
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    (tmp_path / "text" / "inside.jsonl").symlink_to(tmp_path / "text" / "all.jsonl")
    assert load_corpus([tmp_path / "text"], allowed_dirs=[tmp_path / "text"]).training
    (tmp_path / "text" / "link.txt").symlink_to(secret)
    with pytest.raises(CorpusError, match=r"link\.txt leads outside"):
        load_corpus([tmp_path / "text"], allowed_dirs=[tmp_path / "text"])
    assert load_corpus([tmp_path / "text"]).sources()["link.txt"] == 1


def test_order_depends_on_content_and_not_on_the_files(tmp_path: Path) -> None:
    a = records(tmp_path / "a.jsonl", *({"text": f"{n}"} for n in range(50)))
    b = records(tmp_path / "b.jsonl", *({"text": f"{n}"} for n in reversed(range(50))))
    one, two = load_corpus([a]), load_corpus([b])
    assert [document.text for document in one.training] == [document.text for document in two.training]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', "line 2"),
        ("a.jsonl", b'{"prompt": "one"}\n', "line 1"),
        ("a.jsonl", b'{"messages": [{"role": "judge", "content": "x"}]}\n', "roles"),
        ("a.jsonl", b'{"text": "only one"}\n', "two or more"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.pdf", b"%PDF", ".txt, .md, .jsonl"),
    ],
)
def test_a_bad_file_is_a_corpus_error_that_names_the_place(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=says) as caught:
        load_corpus([path])
    assert caught.value.param == "corpus"


def test_a_path_that_is_missing_or_has_no_text_is_a_corpus_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="There is no"):
        load_corpus([tmp_path / "nowhere"])
    with pytest.raises(CorpusError, match="has no file"):
        load_corpus([tmp_path])
