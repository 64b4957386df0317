"""Text to token ids and back: chat templates, special tokens, and decoding that never splits a character."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import InvalidRequestError, ModelSourceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not a whole character."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_MAX_HELD_TOKENS = 8
"""Number of tokens to hold back at most. A character has up to four bytes, so more tokens do not complete one."""


class Tokenizer:
    """A transformers tokenizer with the functions that a server needs. Safe to use from several threads."""

    def __init__(
        self,
        hf: Any,  # noqa: ANN401 transformers has no common typed base
        eos_ids: frozenset[int],
        max_vocab: int | None = None,
    ) -> None:
        """Wrap `hf`; `eos_ids` end a generation, and the model has embeddings for ids below `max_vocab`."""
        self.hf = hf
        self.vocab_size = min(len(hf), max_vocab or len(hf))
        """Number of tokens that the model can read, added ones included."""
        self.eos_ids = eos_ids
        marked = {token_id for token_id, token in hf.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset(hf.all_special_ids) | eos_ids | marked
        """BOS, EOS and the chat template's control tokens, which steering does not edit by default."""
        self.added_ids = frozenset(hf.added_tokens_decoder)
        self.has_chat_template = hf.chat_template is not None
        self._byte_of = _byte_alphabet() if _is_byte_level(hf) else None

    @classmethod
    def load(
        cls, path: Path, eos_ids: frozenset[int], *, max_vocab: int | None = None, trust_remote_code: bool = False
    ) -> Tokenizer:
        """Load the tokenizer in a model folder.

        Raises:
            ModelSourceError: the folder has no readable tokenizer.
        """
        from transformers import AutoTokenizer  # noqa: PLC0415 slow import

        if not any((path / name).is_file() for name in _TOKENIZER_FILES):
            message = f"The folder {path} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)})."
            raise ModelSourceError(message)
        try:
            hf = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"The tokenizer in {path} cannot be read: {str(error).splitlines()[0]}"
            raise ModelSourceError(message) from error
        if hf.eos_token_id is not None:
            eos_ids |= {hf.eos_token_id}
        return cls(hf, eos_ids, max_vocab)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a raw prompt, with the special tokens that the tokenizer puts before it."""
        return list(self.hf.encode(text))

    def encode_plain(self, text: str) -> list[int]:
        """Return the tokens of `text`, without special tokens that the tokenizer would add."""
        return list(self.hf.encode(text, add_special_tokens=False))

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """Return the tokens of a conversation in the model's own template, with the role `developer` as `system`.

        Raises:
            InvalidRequestError: the model has no chat template, or the template refuses these messages.
        """
        from jinja2.exceptions import TemplateError  # noqa: PLC0415 needed for chat templates only

        if not self.has_chat_template:
            message = "This model has no chat template, so it cannot chat. Use /v1/completions with a raw prompt."
            raise InvalidRequestError(message, param="messages")
        accepted = [{**m, "role": "system"} if m.get("role") == "developer" else dict(m) for m in messages]
        try:
            rendered = self.hf.apply_chat_template(
                accepted, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            message = f"The model's chat template refuses these messages: {error}"
            raise InvalidRequestError(message, param="messages") from error
        return [int(token_id) for token_id in rendered]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`."""
        return str(
            self.hf.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        )

    def token_text(self, token_id: int) -> str:
        """Return one token's text on its own; part of a character becomes the replacement character."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; b"" for an id that is not in the vocabulary."""
        token = self.hf.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if token_id not in self.added_ids:
            if self._byte_of is not None and all(char in self._byte_of for char in token):
                return bytes(self._byte_of[char] for char in token)
            if match := _BYTE_TOKEN.fullmatch(token):
                return bytes([int(match[1], 16)])
        return str(token).replace("\u2581", " ").encode("utf-8", errors="replace")


class IncrementalDecoder:
    """Turns a growing list of tokens into final text, never half a character.

    Tokens are decoded together with a few before them, as some tokenizers decode a token differently at the start of a
    text. Source: `detokenize_incrementally` of vLLM, which took it from text-generation-inference.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        """Start after a prompt; its last tokens are the context in which the first new token is decoded."""
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_MAX_HELD_TOKENS:])
        self._start = 0
        self._read = len(self._ids)

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now final, which is empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._pending()
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read < _MAX_HELD_TOKENS:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """Return the text held back; bytes of an incomplete character become the replacement character."""
        return self._take(self._pending())

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]

    def _take(self, text: str) -> str:
        self._start, self._read = self._read, len(self._ids)
        if self._start > _MAX_HELD_TOKENS:
            drop = self._start
            del self._ids[:drop]
            self._start, self._read = 0, self._read - drop
        return text


def _is_byte_level(hf: Any) -> bool:  # noqa: ANN401
    backend = getattr(hf, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of byte-level BPE, as inverted from GPT-2's `bytes_to_unicode`."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
