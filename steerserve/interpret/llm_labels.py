"""Labels by a language model: words for what a feature's snippets have in common, scored on unseen snippets.

Source: the automatic interpretation of SAEBench (detection scoring), after EleutherAI's: the model that wrote a label
must tell, from the label alone, which of several unseen snippets activate the feature.
"""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.core.label_text import clean_label
from steerserve.core.observer import StoppedError
from steerserve.store.records import Label
from steerserve.store.stored import token_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from steerserve.core.observer import Observer, Progress
    from steerserve.interpret.endpoint import ChatEndpoint
    from steerserve.store.records import TextSnippet
    from steerserve.store.store import FeatureStore
    from steerserve.store.stored import StoredFeature

NUM_SHOWN = 10
"""Snippets from which a label is written."""
NUM_HELDOUT = 5
"""Snippets of the feature, and as many of others, on which a label is scored."""
_STOP_CHECK_S = 0.5
_PAGE = 500
"""Features in a page of the search for live ones."""
_MAX_LABEL_CHARS = 80
_MAX_LABEL_TOKENS, _MAX_CHOICE_TOKENS = 40, 60
_LEAST_SHARE = 0.3
"""Share of a snippet's maximum from which a token is marked as active."""
_NAMING = (
    "You name features of a language model. You are shown pieces of text; the tokens that activate the feature stand "
    "between << and >>. Answer with a short phrase of at most eight words that says what they have in common, "
    "specific enough to tell such text from other text. Answer with the phrase alone."
)
_CHOOSING = (
    "You are given a description of a feature of a language model, and numbered pieces of text. Answer with the "
    "numbers of the pieces in which the feature is active, separated by commas, or with: none."
)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Result of a labelling run."""

    num_labelled: int
    """Number of features that got a label."""
    num_failed: int
    """Number of features for which the model's answer could not be read."""
    num_tokens: int
    """Number of tokens that the endpoint read and wrote."""
    is_spent: bool
    """Whether the budget ended before all features were labelled."""


async def label_features(
    store: FeatureStore,
    features: Sequence[int],
    endpoint: ChatEndpoint,
    *,
    budget_tokens: int | None,
    concurrency: int,
    seed: int,
    observer: Observer,
) -> Labelled:
    """Label `features` and store each label as it comes; features that this model has labelled before are skipped.

    Args:
        store: Store with the snippets, which gets the labels.
        features: Features in the order in which they are labelled.
        endpoint: The language model.
        budget_tokens: Number of tokens after which no further feature is begun; None for no limit.
        concurrency: Number of requests at the same time.
        seed: Seed that decides which snippets are held out.
        observer: Gets the progress after each feature; may request a stop at any time.

    Raises:
        EndpointError: the endpoint cannot be used; labels so far are stored.
        StoppedError: the observer requested a stop; labels so far are stored.
        FeatureStoreError: a label cannot be stored.
    """
    waiting = [feature for feature in features if not _is_labelled(store, feature, endpoint.model)]
    with observer.stage("Labelling", len(waiting)) as progress:
        run = _LabellingRun(
            store, endpoint, progress, observer, budget_tokens, seed, live=_live_features(store) if waiting else []
        )
        remaining = iter(waiting)
        workers = [asyncio.create_task(run.work(remaining)) for _ in range(concurrency)]
        try:
            await run.watch(asyncio.gather(*workers))
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return Labelled(run.num_labelled, run.num_failed, endpoint.num_tokens, is_spent=run.is_spent)


class _LabellingRun:
    def __init__(
        self,
        store: FeatureStore,
        endpoint: ChatEndpoint,
        progress: Progress,
        observer: Observer,
        budget_tokens: int | None,
        seed: int,
        *,
        live: Sequence[int],
    ) -> None:
        self.num_labelled = self.num_failed = 0
        self.is_spent = False
        self._store, self._endpoint, self._progress, self._observer = store, endpoint, progress, observer
        self._budget_tokens, self._seed, self._live = budget_tokens, seed, live

    async def watch(self, work: asyncio.Future[list[None]]) -> None:
        """Wait for the end of the work, or raise if the observer requests a stop: an answer may take minutes."""
        while not (await asyncio.wait((work,), timeout=_STOP_CHECK_S))[0]:
            self._raise_if_stopped()
        work.result()

    async def work(self, remaining: Iterator[int]) -> None:
        """Label one feature after another."""
        for feature in remaining:
            self._raise_if_stopped()
            if self._budget_tokens is not None and self._endpoint.num_tokens >= self._budget_tokens:
                self.is_spent = True
                return
            label = await self._label(feature)
            if label is None:
                self.num_failed += 1
            else:
                self._store.set_label(feature, label)
                self.num_labelled += 1
            self._progress.update(self.num_labelled + self.num_failed, {"tokens": self._endpoint.num_tokens})

    def _raise_if_stopped(self) -> None:
        if self._observer.should_stop():
            raise StoppedError(f"Stopped after {self.num_labelled} labels; the same command goes on from there.")

    async def _label(self, feature: int) -> Label | None:
        stored = self._store.feature(feature)
        snippets = list(stored.record.snippets) if stored is not None and stored.record is not None else []
        if stored is None or not snippets:
            return None
        generator = random.Random(f"{self._seed} {feature}")  # noqa: S311 it only has to differ by feature
        generator.shuffle(snippets)
        heldout = snippets[:NUM_HELDOUT] if len(snippets) > NUM_HELDOUT else []
        shown = [snippet for snippet in snippets if snippet not in heldout][:NUM_SHOWN]
        text = await self._endpoint.ask(
            _NAMING, "\n".join(_marked(snippet, stored) for snippet in shown), max_tokens=_MAX_LABEL_TOKENS
        )
        words = clean_label(text, len(text)).strip(" .\"'`*")[:_MAX_LABEL_CHARS].rstrip()
        if not words:
            return None
        score = await self._score(words, heldout, stored, generator) if heldout else None
        return Label(words, "llm", score=score, author=self._endpoint.model)

    async def _score(
        self, words: str, heldout: Sequence[TextSnippet], stored: StoredFeature, generator: random.Random
    ) -> float | None:
        """Return the mean of two shares: of the feature's and of other snippets that were classified right.

        None if there are too few other snippets: a model that answers "all" must get .5.
        """
        others = list(self._other_texts(stored, len(heldout), generator))
        if len(others) < len(heldout):
            return None
        texts = [*((_plain(snippet, stored), True) for snippet in heldout), *((text, False) for text in others)]
        generator.shuffle(texts)
        numbered = "\n".join(f"{number}. {text}" for number, (text, _) in enumerate(texts, start=1))
        answer = await self._endpoint.ask(
            _CHOOSING, f"Description: {words}\n\n{numbered}", max_tokens=_MAX_CHOICE_TOKENS
        )
        chosen = {int(number) for number in re.findall(r"\b\d{1,3}\b", answer)}
        if not chosen and "none" not in answer.lower():
            return None
        is_correct: dict[bool, list[bool]] = {True: [], False: []}
        for number, (_, is_active) in enumerate(texts, start=1):
            is_correct[is_active].append((number in chosen) == is_active)
        return sum(sum(answers) / len(answers) for answers in is_correct.values()) / len(is_correct)

    def _other_texts(self, stored: StoredFeature, count: int, generator: random.Random) -> Iterator[str]:
        """Yield snippets of `count` other live features, drawn at random; none that the feature has too."""
        own = {snippet.token_ids for snippet in stored.record.snippets} if stored.record is not None else set()
        num_texts = 0
        for feature in generator.sample(self._live, len(self._live)):
            other = self._store.feature(feature) if feature != stored.feature else None
            if other is None or other.record is None:
                continue
            if snippets := [snippet for snippet in other.record.snippets if snippet.token_ids not in own]:
                num_texts += 1
                yield _plain(generator.choice(snippets), other)
                if num_texts == count:
                    return


def _live_features(store: FeatureStore) -> list[int]:
    """Return the features of a store that were active at all."""
    live: list[int] = []
    has_more, offset = True, 0
    while has_more:
        hits, has_more = store.search("", "feature", _PAGE, offset)
        live += [hit.feature for hit in hits if hit.density]
        offset += _PAGE
    return live


def _is_labelled(store: FeatureStore, feature: int, model: str) -> bool:
    stored = store.feature(feature)
    return stored is not None and any(label.origin == "llm" and label.author == model for label in stored.labels)


def _plain(snippet: TextSnippet, stored: StoredFeature) -> str:
    return _one_line("".join(token_texts(snippet.token_ids, stored.token_bytes)))


def _marked(snippet: TextSnippet, stored: StoredFeature) -> str:
    """Return a snippet's text with the tokens where the feature is active between << and >>."""
    least = _LEAST_SHARE * max(snippet.acts)
    texts = token_texts(snippet.token_ids, stored.token_bytes)
    marked = (f"<<{text}>>" if act >= least > 0 else text for text, act in zip(texts, snippet.acts, strict=True))
    return _one_line("".join(marked).replace(">><<", ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())
