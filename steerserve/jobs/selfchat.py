"""Lets a model write the text of a run: both sides of chats, or free text if it has no chat template.

Source: Magpie (Xu et al. 2024, arXiv 2406.08464, section 2): a chat model that gets its template up to the user's turn
continues as a user would; what it writes there becomes the question that it then answers.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from steerserve.core.errors import CorpusError, EngineError
from steerserve.core.observer import StoppedError
from steerserve.engine.request import GenerationRequest, SamplingParams
from steerserve.engine.runner import Runner, default_chunk
from steerserve.engine.selfcheck import check_cache
from steerserve.engine.slot_engine import SlotEngine
from steerserve.text.windows import constant_start

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from steerserve.core.observer import Observer
    from steerserve.model.lens import LensModel
    from steerserve.model.tokenizer import Tokenizer
    from steerserve.text.records import RecordFile

_CONTEXT = 512
_SLOTS = {"cpu": 32, "cuda": 128}
_MEMORY_SHARE = 0.5
"""Share of the free memory for keys and values."""
_QUESTION_TOKENS = 128
_QUESTION = {"temperature": 1.0, "top_p": 0.95}
_ANSWER = {"temperature": 0.8, "top_p": 0.95}
_MIN_QUESTION_CHARS = 8
"""A shorter turn of the user is a greeting or nothing."""
_MAX_REPETITION = 0.3
"""Largest share of repeated word 3-grams in a usable text; lists reach 0.2."""
_STUTTER = re.compile(r"([^\s*#=_.|-]{1,12})\1{9,}")
"""The same characters ten times in a row, except those that draw rules and tables."""
_MAX_REJECTED = 2000
"""Number of unusable texts in a row after which the model is given up."""
_POLL_S = 0.2


def write_own_text(lens: LensModel, target: RecordFile, *, seed: int, num_tokens: int, observer: Observer) -> None:
    """Let the model write into `target` until the file holds `num_tokens` tokens.

    A text depends only on the seed and its own number, so a run that continues writes the same texts as a run that was
    never stopped. (On CUDA rounding differs with the batch, and a text may come out differently.)

    Raises:
        CorpusError: the model writes no usable text, or the file cannot be written.
        ModelSourceError: the model cannot compute with the engine's cache.
        StoppedError: the observer requested a stop; what was written is kept.
    """
    with ExitStack() as stack:
        stack.enter_context(target)
        progress = stack.enter_context(observer.stage("Writing text with the model", num_tokens))
        existing = target.open()
        tokens = sum(_num_tokens(lens.tokenizer, record) for record in existing)
        seen = {_opening(record) for record in existing}
        progress.update(tokens, {"tokens": tokens})
        writer = stack.enter_context(_Writer(lens, seed))
        started, first_tokens, last_kept = time.monotonic(), tokens, target.num_seen
        texts = enumerate(writer.texts(target.num_seen, observer), start=target.num_seen)
        while tokens < num_tokens:
            number, record = next(texts)
            if record is not None and _opening(record) not in seen:
                target.add(number, record)
                seen.add(_opening(record))
                tokens += _num_tokens(lens.tokenizer, record)
                last_kept = number
                rate = (tokens - first_tokens) / max(time.monotonic() - started, 1e-9)
                progress.update(tokens, {"tokens": tokens, "texts": number + 1, "tokens_per_s": round(rate, 1)})
            elif number - last_kept > _MAX_REJECTED:
                message = (
                    f"The model {lens.id} writes no usable text: the last {_MAX_REJECTED} were empty or repetitive. "
                    "Give a corpus of files or of the hub instead of 'self'."
                )
                raise CorpusError(message, param="corpus")
        target.finish()


class _Writer:
    """Generates texts on an engine of its own, with all slots busy, and yields them in order."""

    def __init__(self, lens: LensModel, seed: int) -> None:
        self._lens = lens
        self._seed = seed
        self._context = min(_CONTEXT, lens.max_context)
        self._num_slots = _affordable_slots(lens, self._context)
        runner = Runner(lens, self._num_slots, self._context, {})
        check_cache(runner)
        chunk = default_chunk(lens.device)
        self._engine = SlotEngine(runner, num_slots=self._num_slots, max_queue=2 * self._num_slots, chunk=chunk)
        # A few more threads than slots, so that a slot that becomes free is taken at once.
        self._num_threads = self._num_slots + self._num_slots // 4 + 1
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="selfchat")
        self._prefix = constant_start(lens.tokenizer) if lens.tokenizer.has_chat_template else None
        self._turn_end = _turn_end(lens.tokenizer, self._prefix) if self._prefix else {}

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        # First the engine, whose end releases the threads.
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.stop()
        self._threads.shutdown(wait=True)

    def texts(self, start: int, observer: Observer) -> Iterator[dict[str, Any] | None]:
        """Yield the texts from number `start` on, without end; None for an unusable text."""
        numbers = itertools.count(start)
        pending: deque[Future[dict[str, Any] | None]] = deque()
        while True:
            while len(pending) < 2 * self._num_threads:
                pending.append(self._threads.submit(self._text, next(numbers)))
            while not wait([pending[0]], timeout=_POLL_S).done:
                _check_stop(observer)
            _check_stop(observer)
            yield pending.popleft().result()

    def _text(self, number: int) -> dict[str, Any] | None:
        key = hashlib.blake2b(f"{self._seed}:{number}".encode(), digest_size=7).digest()
        seed = int.from_bytes(key, "little")
        if self._prefix is None:
            text = self._generate(_free_start(self._lens.tokenizer), self._context, seed, 0, _QUESTION)
            return {"text": text} if _is_usable(text) else None
        # At most half of what the template leaves, so that the answer fits behind the question.
        max_tokens = min(_QUESTION_TOKENS, (self._context - len(self._prefix)) // 2)
        question = self._generate(self._prefix, max_tokens, seed, 0, _QUESTION)
        if len(question) < _MIN_QUESTION_CHARS or not _is_usable(question):
            return None
        turns = [{"role": "user", "content": question}]
        prompt = self._lens.tokenizer.render_chat(turns)
        if len(prompt) >= self._context:
            return None
        answer = self._generate(prompt, self._context, seed, 1, _ANSWER)
        return {"messages": [*turns, {"role": "assistant", "content": answer}]} if _is_usable(answer) else None

    def _generate(
        self, prompt: Sequence[int], max_tokens: int, seed: int, sample_index: int, sampling: Mapping[str, float]
    ) -> str:
        free_tokens = self._context - len(prompt)
        if free_tokens < 1:
            message = (
                f"The chat template of {self._lens.id} fills the whole context of {self._context} tokens, so the model "
                "cannot write text. Give a corpus of files or of the hub instead of 'self'."
            )
            raise CorpusError(message, param="corpus")
        request = GenerationRequest(
            request_id=f"selfchat-{seed}-{sample_index}",
            prompt_ids=tuple(prompt),
            sampling=SamplingParams(
                max_tokens=min(max_tokens, free_tokens),
                temperature=sampling["temperature"],
                top_p=sampling["top_p"],
                seed=seed,
                stop=self._turn_end.get("stop", ()),
                stop_token_ids=tuple(self._lens.tokenizer.special_ids),
            ),
            sample_index=sample_index,
        )
        (events,) = self._engine.generate([request])
        return "".join(event.text for event in events).strip()


def _check_stop(observer: Observer) -> None:
    if observer.should_stop():
        message = "Stopped while the model was writing; the same call continues from there."
        raise StoppedError(message)


def _affordable_slots(lens: LensModel, context: int) -> int:
    """Return how many sequences fit into a share of the free memory.

    Raises:
        EngineError: not even one sequence fits.
    """
    num_slots = int(_MEMORY_SHARE * lens.free_bytes()) // (context * lens.cache_bytes_per_token)
    if num_slots < 1:
        message = f"The free memory on {lens.device} is too small for {lens.id} to write text."
        raise EngineError(message)
    return min(num_slots, _SLOTS.get(lens.device.type, _SLOTS["cpu"]))


def _free_start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the prompt of free text: the token that begins every text, or a new line if the model has none."""
    begin = tokenizer.hf.bos_token_id
    return tuple(tokenizer.encode_plain("\n")) if begin is None else (begin,)


def _turn_end(tokenizer: Tokenizer, prefix: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Return, as `stop`, the text that ends a user's turn in the template; nothing if a special token ends it."""
    first, second = (
        tokenizer.render_chat([{"role": "user", "content": text}])[len(prefix) :] for text in ("a cat", "7 dogs")
    )
    same = next((n for n, (a, b) in enumerate(zip(reversed(first), reversed(second), strict=False)) if a != b), 0)
    end = first[len(first) - same :]
    if not end or end[0] in tokenizer.special_ids:
        return {}
    plain = itertools.takewhile(lambda token_id: token_id not in tokenizer.special_ids, end)
    text = tokenizer.decode(list(plain)).strip()
    return {"stop": (text,)} if text else {}


def _is_usable(text: str) -> bool:
    """Tell whether a text is usable: not empty, and not a few words or characters over and over."""
    if _STUTTER.search(text):
        return False
    words = text.split()
    grams = [tuple(words[index : index + 3]) for index in range(len(words) - 2)]
    if text and grams:
        return 1 - len(set(grams)) / len(grams) <= _MAX_REPETITION
    return any(character.isalnum() for character in text)


def _opening(record: Mapping[str, Any]) -> str:
    """Return the part of a record that must not occur twice: the user's turn, or the text."""
    return str(record["messages"][0]["content"] if "messages" in record else record["text"])


def _num_tokens(tokenizer: Tokenizer, record: Mapping[str, Any]) -> int:
    contents = [turn["content"] for turn in record.get("messages", ())] or [record["text"]]
    return sum(len(tokenizer.encode_plain(content)) for content in contents)
