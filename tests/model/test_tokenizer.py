"""Text to tokens and back, a token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from steerserve.core.errors import InvalidRequestError, ModelSourceError
from steerserve.model.tokenizer import REPLACEMENT, IncrementalDecoder, Tokenizer
from tests.tiny import IM_END_ID, IM_START_ID, byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

BYTES = Tokenizer(byte_tokenizer(), frozenset({IM_END_ID}))
TEXT = st.text(st.characters(codec="utf-8"), max_size=24)
MANY = settings(max_examples=200, deadline=None, derandomize=True)


def spaced_tokenizer() -> Tokenizer:
    """Build one as Llama 2 has it: a word's space is part of its token, other bytes have tokens like <0xE2>."""
    words = ["\u2581the", "\u2581cat", "cat", "s", "\u2581", ",", "."]
    vocab = {token: number for number, token in enumerate([*(f"<0x{byte:02X}>" for byte in range(256)), *words])}
    backend = Backend(BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False), frozenset())


def pieces_of(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, prompt)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@MANY
@given(text=TEXT, prompt=TEXT)
def test_any_text_comes_out_whole_token_by_token(text: str, prompt: str) -> None:
    pieces = pieces_of(BYTES, list(prompt.encode()), list(text.encode()))
    assert "".join(pieces) == text


@MANY
@given(text=st.text(st.characters(codec="utf-8", exclude_characters=REPLACEMENT), max_size=20))
def test_a_character_comes_with_its_last_byte_and_never_in_part(text: str) -> None:
    decoder = IncrementalDecoder(BYTES, [])
    for character in text:
        encoded = character.encode()
        assert [decoder.push(byte) for byte in encoded] == [""] * (len(encoded) - 1) + [character]


@MANY
@given(prompt=st.binary(max_size=12), text=st.text("aé€😀", max_size=8))
def test_a_prompt_that_ends_amid_a_character_spoils_at_most_the_first_ones(prompt: bytes, text: str) -> None:
    pieces = pieces_of(BYTES, list(prompt), [*b"ok", *text.encode()])
    assert "".join(pieces).endswith("k" + text)


@MANY
@given(junk=st.binary(max_size=30), text=st.text("abc", min_size=1, max_size=8))
def test_bytes_that_are_no_text_do_not_swallow_the_text_after_them(junk: bytes, text: str) -> None:
    joined = "".join(pieces_of(BYTES, [], [*junk, *text.encode()]))
    assert joined.endswith(text)


def test_broken_bytes_are_not_held_for_ever() -> None:
    decoder = IncrementalDecoder(BYTES, [])
    pieces = [decoder.push(0xFF) for _ in range(20)]
    assert any(pieces[:8])


def test_special_tokens_add_no_text() -> None:
    ids = [*b"a", IM_START_ID, *b"b", IM_END_ID]
    assert pieces_of(BYTES, [], ids) == ["a", "", "b", "", ""]


@MANY
@given(
    ids=st.lists(st.integers(256, 262), max_size=12), prompt=st.lists(st.integers(256, 262), min_size=1, max_size=12)
)
def test_spaces_between_words_are_kept_where_a_text_alone_loses_its_first(ids: list[int], prompt: list[int]) -> None:
    tokenizer = spaced_tokenizer()
    whole, before = tokenizer.decode([*prompt, *ids]), tokenizer.decode(prompt)
    assert "".join(pieces_of(tokenizer, prompt, ids)) == whole[len(before) :]


def test_bytes_written_as_tokens_become_characters() -> None:
    tokenizer = spaced_tokenizer()
    assert pieces_of(tokenizer, [256], [257, *"€".encode(), 261]) == [" cat", "", "", "€", ",", ""]


@MANY
@given(text=TEXT)
def test_token_bytes_join_to_the_text(text: str) -> None:
    assert b"".join(BYTES.token_bytes(token_id) for token_id in BYTES.encode_plain(text)) == text.encode()


def test_each_byte_token_is_its_byte_and_others_are_their_names() -> None:
    assert [BYTES.token_bytes(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert BYTES.token_bytes(IM_START_ID) == b"<|im_start|>"
    assert BYTES.token_bytes(10_000) == b""
    assert BYTES.token_text(0xE2) == REPLACEMENT
    assert spaced_tokenizer().token_bytes(0xE2) == b"\xe2"
    assert spaced_tokenizer().token_bytes(256) == b" the"


def test_control_tokens_are_special_and_the_eos_ends() -> None:
    assert BYTES.special_ids == {256, 257, 258}
    assert BYTES.eos_ids == {IM_END_ID}
    assert BYTES.encode("<|im_end|>") == [IM_END_ID]


def test_a_conversation_is_rendered_by_the_models_template_and_developer_is_system() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = BYTES.decode(BYTES.render_chat(messages), skip_special_tokens=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    shorter = BYTES.decode(BYTES.render_chat(messages, add_generation_prompt=False), skip_special_tokens=False)
    assert not shorter.endswith("assistant\n")


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no system role here') }}"])
def test_a_missing_or_unwilling_template_is_the_requests_error(template: str | None) -> None:
    hf: Any = byte_tokenizer()
    hf.chat_template = template
    with pytest.raises(InvalidRequestError, match="template") as caught:
        Tokenizer(hf, frozenset()).render_chat([{"role": "user", "content": "Hi"}])
    assert caught.value.param == "messages"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="tokenizer"):
        Tokenizer.load(tmp_path, frozenset())
