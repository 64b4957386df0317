"""A model writes its own text: both sides of chats, or free text where it has no chat template.

Source: Magpie (Xu et al. 2024, arXiv 2406.08464, section 2): a chat model that is given its template up to where the
user speaks goes on as a user would; what it writes there is then put to it.
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
"""Of the free memory, for keys and values."""
_QUESTION_TOKENS = 128
_QUESTION = {"temperature": 1.0, "top_p": 0.95}
_ANSWER = {"temperature": 0.8, "top_p": 0.95}
_LEAST_QUESTION = 8
"""Characters; a shorter turn is a greeting or nothing."""
_MAX_REPETITION = 0.3
"""Share of repeated word 3-grams from which a text is broken; lists reach 0.2."""
_STUTTER = re.compile(r"([^\s*#=_.|-]{1,12})\1{9,}")
"""The same signs ten times in a row; those that rule lines and tables are made of may be."""
_MAX_REFUSED = 2000
"""Texts in a row of which none is kept: a model that writes nothing else is not going to."""
_POLL_S = 0.2


def write_own_text(lens: LensModel, target: RecordFile, *, seed: int, num_tokens: int, observer: Observer) -> None:
    """Let the model write into `target` until it holds `num_tokens` tokens.

    Text `number` depends on the seed and its number alone, so that a run which goes on writes what one that was never
    stopped would have. (On CUDA rounding differs with the batch, and a text may take another turn.)

    Raises:
        CorpusError: the model writes nothing that can be kept, or the file cannot be written.
        ModelSourceError: the model cannot compute with the engine's cache.
        StoppedError: the observer asked for it; what was written is kept.
    """
    with ExitStack() as stack:
        stack.enter_context(target)
        progress = stack.enter_context(observer.stage("Writing text of its own", num_tokens))
        there = target.open()
        tokens = sum(_num_tokens(lens.tokenizer, record) for record in there)
        seen = {_beginning(record) for record in there}
        progress.update(tokens, {"tokens": tokens})
        writer = stack.enter_context(_Writer(lens, seed))
        started, first_tokens, last_kept = time.monotonic(), tokens, target.num_seen
        texts = enumerate(writer.texts(target.num_seen, observer), start=target.num_seen)
        while tokens < num_tokens:
            number, record = next(texts)
            if record is not None and _beginning(record) not in seen:
                target.add(number, record)
                seen.add(_beginning(record))
                tokens += _num_tokens(lens.tokenizer, record)
                last_kept = number
                rate = (tokens - first_tokens) / max(time.monotonic() - started, 1e-9)
                progress.update(tokens, {"tokens": tokens, "texts": number + 1, "tokens_per_s": round(rate, 1)})
            elif number - last_kept > _MAX_REFUSED:
                message = (
                    f"{lens.id} writes no text worth training on: the last {_MAX_REFUSED} were empty or repeated. "
                    "Give it text of another kind."
                )
                raise CorpusError(message, param="corpus")
        target.finish()


class _Writer:
    """Keeps all slots of an engine of its own busy, and gives the texts in their order."""

    def __init__(self, lens: LensModel, seed: int) -> None:
        self._lens = lens
        self._seed = seed
        self._context = min(_CONTEXT, lens.max_context)
        self._num_slots = _affordable_slots(lens, self._context)
        runner = Runner(lens, self._num_slots, self._context, {})
        check_cache(runner)
        chunk = default_chunk(lens.device)
        self._engine = SlotEngine(runner, num_slots=self._num_slots, max_queue=2 * self._num_slots, chunk=chunk)
        # Some more threads than slots, so that a slot that falls free is taken at once.
        self._num_threads = self._num_slots + self._num_slots // 4 + 1
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="selfchat")
        self._prefix = constant_start(lens.tokenizer) if lens.tokenizer.has_chat_template else None
        self._turn_end = _turn_end(lens.tokenizer, self._prefix) if self._prefix else {}

    def __enter__(self) -> Self:
        self._engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        # First the engine, which ends what the threads wait for.
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.stop()
        self._threads.shutdown(wait=True)

    def texts(self, start: int, observer: Observer) -> Iterator[dict[str, Any] | None]:
        """Yield the texts from number `start` on, without end; None for one that is not worth keeping."""
        numbers = itertools.count(start)
        ahead: deque[Future[dict[str, Any] | None]] = deque()
        while True:
            while len(ahead) < 2 * self._num_threads:
                ahead.append(self._threads.submit(self._text, next(numbers)))
            while not wait([ahead[0]], timeout=_POLL_S).done:
                _check_stop(observer)
            _check_stop(observer)
            yield ahead.popleft().result()

    def _text(self, number: int) -> dict[str, Any] | None:
        key = hashlib.blake2b(f"{self._seed}:{number}".encode(), digest_size=7).digest()
        seed = int.from_bytes(key, "little")
        if self._prefix is None:
            text = self._generate(_free_start(self._lens.tokenizer), self._context, seed, 0, _QUESTION)
            return {"text": text} if _is_sound(text) else None
        # At most half of what is left, so that an answer fits behind it.
        most = min(_QUESTION_TOKENS, (self._context - len(self._prefix)) // 2)
        question = self._generate(self._prefix, most, seed, 0, _QUESTION)
        if len(question) < _LEAST_QUESTION or not _is_sound(question):
            return None
        turns = [{"role": "user", "content": question}]
        prompt = self._lens.tokenizer.render_chat(turns)
        if len(prompt) >= self._context:
            return None
        answer = self._generate(prompt, self._context, seed, 1, _ANSWER)
        return {"messages": [*turns, {"role": "assistant", "content": answer}]} if _is_sound(answer) else None

    def _generate(
        self, prompt: Sequence[int], max_tokens: int, seed: int, sample_index: int, manner: Mapping[str, float]
    ) -> str:
        room = self._context - len(prompt)
        if room < 1:
            message = f"The chat template of {self._lens.id} leaves no room within {self._context} tokens."
            raise CorpusError(message, param="corpus")
        request = GenerationRequest(
            request_id=f"selfchat-{seed}-{sample_index}",
            prompt_ids=tuple(prompt),
            sampling=SamplingParams(
                max_tokens=min(max_tokens, room),
                temperature=manner["temperature"],
                top_p=manner["top_p"],
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
        message = "Stopped while the model was writing; the same call goes on from there."
        raise StoppedError(message)


def _affordable_slots(lens: LensModel, context: int) -> int:
    """Return how many sequences fit into a share of the free memory.

    Raises:
        EngineError: not even one.
    """
    most = int(_MEMORY_SHARE * lens.free_bytes()) // (context * lens.cache_bytes_per_token)
    if most < 1:
        message = f"There is no memory left on {lens.device} for {lens.id} to write text."
        raise EngineError(message)
    return min(most, _SLOTS.get(lens.device.type, _SLOTS["cpu"]))


def _free_start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return what free text begins after: the model's first token, or else a new line."""
    begin = tokenizer.hf.bos_token_id
    return tuple(tokenizer.encode_plain("\n")) if begin is None else (begin,)


def _turn_end(tokenizer: Tokenizer, prefix: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """Return the text with which a template ends a user's turn; nothing where that is a special token."""
    one, two = (
        tokenizer.render_chat([{"role": "user", "content": text}])[len(prefix) :] for text in ("a cat", "7 dogs")
    )
    same = next((n for n, (a, b) in enumerate(zip(reversed(one), reversed(two), strict=False)) if a != b), 0)
    end = one[len(one) - same :]
    if not end or end[0] in tokenizer.special_ids:
        return {}
    plain = itertools.takewhile(lambda token_id: token_id not in tokenizer.special_ids, end)
    text = tokenizer.decode(list(plain)).strip()
    return {"stop": (text,)} if text else {}


def _is_sound(text: str) -> bool:
    """Tell whether a text is one: not empty, not a few words or signs over and over."""
    if _STUTTER.search(text):
        return False
    words = text.split()
    grams = [tuple(words[place : place + 3]) for place in range(len(words) - 2)]
    if text and grams:
        return 1 - len(set(grams)) / len(grams) <= _MAX_REPETITION
    return any(character.isalnum() for character in text)


def _beginning(record: Mapping[str, Any]) -> str:
    """Return what may not be there twice: the user's turn, or the text."""
    return str(record["messages"][0]["content"] if "messages" in record else record["text"])


def _num_tokens(tokenizer: Tokenizer, record: Mapping[str, Any]) -> int:
    contents = [turn["content"] for turn in record.get("messages", ())] or [record["text"]]
    return sum(len(tokenizer.encode_plain(content)) for content in contents)
