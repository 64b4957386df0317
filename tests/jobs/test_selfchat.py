"""A model writes its own text: the same for a seed, however often the run is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.errors import CorpusError
from steerserve.core.observer import StoppedError
from steerserve.jobs import selfchat
from steerserve.text.records import RecordFile
from steerserve.text.windows import constant_start
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

pytestmark = pytest.mark.slow

NUM_TOKENS = 900


def write(runtime: Runtime, path: Path, *, seed: int = 0, observer: Quiet | None = None) -> list[dict[str, Any]]:
    target = RecordFile(path)
    selfchat.write_own_text(runtime.lens, target, seed=seed, num_tokens=NUM_TOKENS, observer=observer or Quiet())
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_it_writes_both_sides_of_chats_until_there_are_enough_tokens(llama: Runtime, tmp_path: Path) -> None:
    observer = Quiet()
    records = write(llama, tmp_path / "a.jsonl", observer=observer)
    assert all([turn["role"] for turn in record["messages"]] == ["user", "assistant"] for record in records)
    sizes = [sum(len(turn["content"].encode()) for turn in record["messages"]) for record in records]
    assert sum(sizes[:-1]) < NUM_TOKENS <= sum(sizes)
    assert observer.facts["tokens"] == sum(sizes)
    assert observer.facts["tokens_per_s"] > 0
    assert len({record["messages"][0]["content"] for record in records}) == len(records)


def test_a_seed_gives_one_text_and_another_seed_another(llama: Runtime, tmp_path: Path) -> None:
    first, again, other = (
        write(llama, tmp_path / f"{name}.jsonl", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert {json.dumps(record["messages"]) for record in first}.isdisjoint(
        json.dumps(record["messages"]) for record in other
    )


def test_a_run_that_is_stopped_and_killed_ends_with_the_file_of_one_that_was_not(
    llama: Runtime, tmp_path: Path
) -> None:
    whole = write(llama, tmp_path / "whole.jsonl")
    path, part = tmp_path / "a.jsonl", tmp_path / "a.jsonl.part"
    with pytest.raises(StoppedError, match="continues from there"):
        write(llama, path, observer=Quiet(stop_at=3))
    assert 1 <= part.read_bytes().count(b"\n") < len(whole)
    part.write_bytes(part.read_bytes() + b'{"messages": [{"role": "us')
    with pytest.raises(KeyboardInterrupt):
        write(llama, path, observer=Quiet(cut_at=3))
    assert write(llama, path) == whole
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_model_without_a_chat_template_writes_free_text(
    llama: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.tokenizer, "has_chat_template", False)
    records = write(llama, tmp_path / "a.jsonl")
    assert all(set(record) == {"text", "number"} and record["text"] for record in records)


def test_a_model_that_writes_nothing_usable_is_refused(
    llama: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfchat, "_MAX_REJECTED", 20)
    monkeypatch.setattr(selfchat, "_MIN_QUESTION_CHARS", 10**6)
    with pytest.raises(CorpusError, match="writes no usable text"):
        write(llama, tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("", False),
        ("...", False),
        ("Yes", True),
        ("What is the best way to learn about the sea?", True),
        ("and so and so and so and so and so and so", False),
        ("a list:\n- one is one\n- two is two\n- three is three", True),
        (
            "Well \U0001f333\U0001f333\U0001f333\U0001f333\U0001f333\U0001f333\U0001f333\U0001f333\U0001f333\U0001f333",
            False,
        ),
        ("| a | b |\n|--------------------|----|", True),
    ],
)
def test_empty_and_broken_texts_are_left_out(text: str, sound: bool) -> None:
    assert selfchat._is_usable(text) is sound


class Template:
    """A tokenizer of characters with a template that ends turns in plain text, or with a special token."""

    special_ids = frozenset({0})
    has_chat_template = True

    def __init__(self, end: str) -> None:
        self.end = end

    def render_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [0, *(ord(sign) % 0x110000 for sign in f"USER: {messages[0]['content']}{self.end}")]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_turn_ends_where_the_template_says_so() -> None:
    prefix = constant_start(Template(" ASSISTANT:"))  # type: ignore[arg-type]
    assert selfchat._turn_end(Template(" ASSISTANT:"), prefix) == {"stop": ("ASSISTANT:",)}  # type: ignore[arg-type]
    assert selfchat._turn_end(Template("\0\nASSISTANT:"), prefix) == {}  # type: ignore[arg-type]
