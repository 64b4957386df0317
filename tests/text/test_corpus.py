"""Documents come from files of three kinds, in an order and on a side that only their content decides."""

from __future__ import annotations

import hashlib
import json
import random
import re
import tracemalloc
from pathlib import Path

import pytest

from steerserve.core.errors import CorpusError
from steerserve.text import files as text_files
from steerserve.text.corpus import Documents, load_corpus
from steerserve.text.files import Document


def records(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(documents: Documents) -> list[Document]:
    return [document.read() for document in documents]


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

    found = {document.text or document.messages for document in (*read(corpus.training), *read(corpus.heldout))}
    assert found == {"plain", "# marked", "a\u2028record", (("user", "Hi"), ("assistant", "Hello"))}
    assert corpus.sources() == {"a.txt": 1, "b.md": 1, "d.jsonl": 2}


def test_a_long_file_is_cut_at_blank_lines_into_many_documents(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(f"{n} {'x' * 500}" for n in range(40)), encoding="utf-8")
    corpus = load_corpus([tmp_path])
    assert 4 <= len(corpus.training) + len(corpus.heldout) <= 6


def test_held_out_documents_are_apart_and_stay_apart_when_the_corpus_grows(tmp_path: Path) -> None:
    small, large = load_corpus([numbered(tmp_path / "s", 500)]), load_corpus([numbered(tmp_path / "l", 1000)])

    assert not set(read(small.training)) & set(read(small.heldout))
    assert 10 <= len(small.heldout) <= 45
    assert set(read(small.heldout)) <= set(read(large.heldout))
    assert small.sha256 != large.sha256


def test_a_repeated_document_counts_once_so_that_no_copy_of_it_is_trained_on(tmp_path: Path) -> None:
    file = numbered(tmp_path / "a", 100)
    other = tmp_path / "b.jsonl"
    other.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")

    once, twice = load_corpus([file]), load_corpus([file, other])

    assert [one.text for one in read(once.training)] == [one.text for one in read(twice.training)]
    assert [one.text for one in read(once.heldout)] == [one.text for one in read(twice.heldout)]
    assert {one.source for one in read(twice.training)} == {"b.jsonl"}
    assert once.sha256 == twice.sha256


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
    assert [document.text for document in read(one.training)] == [document.text for document in read(two.training)]


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


def by_hand(sources: list[Path]) -> tuple[list[str], list[str], str]:
    """Return the training and held-out texts and the digest, with everything in memory."""
    texts: dict[str, str] = {}
    for file in (file for source in sources for file in sorted(source.iterdir())):
        content = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            found = [json.loads(line)["text"] for line in content.split("\n") if line.strip()]
        else:
            found, piece = [], []
            for paragraph in re.split(r"\n\s*\n", content):
                piece.append(paragraph)
                if sum(map(len, piece)) >= text_files._MAX_CHARS:
                    found.append("\n\n".join(piece))
                    piece = []
            found += ["\n\n".join(piece)] if "".join(piece).strip() else []
        texts |= {hashlib.sha256(text.encode()).hexdigest(): text for text in found}
    digests = sorted(texts)
    held = {digest for digest in digests if int(digest[:8], 16) < 0.05 * 16**8} or {digests[0]}
    held -= {digests[-1]} if len(held) == len(digests) else set()
    order = sorted(digests, key=lambda digest: digest[8:])
    return (
        [texts[digest] for digest in order if digest not in held],
        [texts[digest] for digest in order if digest in held],
        hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_is_read_a_line_at_a_time_is_what_the_whole_files_give(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(text_files, "_MAX_CHARS", draw.choice([1, 8, 40]))
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", draw.choice([200, 1 << 20]))
    parts = [
        "a",
        "b",
        "\u00e9",
        "\n",
        "\r\n",
        "\r",
        " ",
        "\t",
        "\x0b",
        "\u2028",
        "\x85",
        "words",
        "\n\n",
        "\n \n",
        "\ufeff",
    ]
    for number in range(4):
        text = "".join(draw.choices(parts, k=draw.randint(0, 60)))
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    rows = [json.dumps({"text": f"\u2028{draw.randint(0, 9)}"}, ensure_ascii=False) for _ in range(9)]
    (tmp_path / "rows.jsonl").write_bytes(draw.choice(["\n", "\r\n", "\r", "\n \n"]).join(rows).encode())
    corpus = load_corpus([tmp_path])
    found = [document.text for document in read(corpus.training)], [document.text for document in read(corpus.heldout)]
    assert (*found, corpus.sha256) == by_hand([tmp_path])


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_that_changes_meanwhile_is_a_corpus_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_MAX_CHARS", 1)
    lines = [json.dumps({"text": f"document {number}"}) for number in range(20)]
    file = tmp_path / name
    file.write_text("\n\n".join(lines), encoding="utf-8")
    corpus = load_corpus([file])
    assert len(read(corpus.training)) == 19
    for change in ("\n\n".join(reversed(lines)), "", "x" * 400, "\n\n".join(lines).replace("0", "1")):
        file.write_text(change, encoding="utf-8")
        with pytest.raises(CorpusError, match="has changed"):
            read(corpus.training), read(corpus.heldout)
    file.unlink()
    with pytest.raises(CorpusError, match="cannot be read"):
        read(corpus.training)


def test_a_link_that_comes_later_leads_nowhere(tmp_path: Path) -> None:
    file = numbered(tmp_path / "text", 5)
    corpus = load_corpus([file], allowed_dirs=[tmp_path / "text"])
    file.rename(tmp_path / "all.jsonl")
    file.symlink_to(tmp_path / "all.jsonl")
    with pytest.raises(CorpusError, match="leads outside"):
        read(corpus.training)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json.dumps({"text": "x" * 300})),
        ("a.txt", "x" * 300),
        ("a.md", "a\n\n" + "line of words\n" * 30),
        ("a.txt", "x\r" * 3 + "x" * 300 + "\r"),
    ],
)
def test_a_document_that_is_too_long_is_refused(
    tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 200)
    with pytest.raises(CorpusError, match="has a document of over"):
        load_corpus([tmp_path])


def test_a_corpus_takes_little_memory_beside_its_text(tmp_path: Path) -> None:
    file = records(tmp_path / "a.jsonl", *({"text": f"{number} {'x' * 2000}"} for number in range(2000)))
    tracemalloc.start()
    corpus = load_corpus([file])
    held = [*corpus.training, *corpus.heldout]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == 2000
    assert peak < file.stat().st_size / 4
