"""Comparisons, written from the samples that a comparison generation yields."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from steerserve.compare.metrics import (
    distinct_2,
    edited_by_token,
    edited_means,
    first_divergence,
    repetition,
    side_effects,
)
from steerserve.core.errors import UnavailableError
from steerserve.requests.comparison_running import ArmSample, TextDelta
from steerserve.requests.watching import FeatureWriter, is_long
from steerserve.wire.compare import (
    ArmDelta,
    ArmDone,
    ArmResult,
    Comparison,
    KeptComparison,
    Sample,
    SampleMetrics,
    SideEffect,
)
from steerserve.wire.generation import PromptTokensDetails, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pydantic import BaseModel

    from steerserve.compare.metrics import SampleScore
    from steerserve.compare.store import ComparisonStore
    from steerserve.engine.request import TokenEvent
    from steerserve.requests.comparison import PreparedComparison
    from steerserve.requests.comparison_running import ComparisonGeneration
    from steerserve.requests.served import ServedModel
    from steerserve.wire.compare import ComparisonRequest

Written = TypeVar("Written")

logger = logging.getLogger(__name__)

_MAX_PROMPT_CHARS = 200
_NOT_KEPT = frozenset({"stream", "stream_options", "store", "metadata"})
"""Fields of a request that do not affect the comparison."""


class ComparisonWriter:
    """Writes the samples of one comparison as they become complete, and in the end the whole comparison."""

    def __init__(
        self,
        served: ServedModel,
        body: ComparisonRequest,
        prepared: PreparedComparison,
        generation: ComparisonGeneration,
    ) -> None:
        """Write the answer to `body`."""
        self._served = served
        self._body = body
        self._prepared = prepared
        self._generation = generation
        self._features = FeatureWriter(served, prepared.watch)
        self._samples: dict[tuple[int, int], Sample] = {}

    async def write_samples(self) -> None:
        """Write every sample once it is complete; then the whole comparison can be written with `kept`.

        Raises:
            SteerserveError: a sample failed, or could not be measured.
        """
        async for updates in self._generation.updates():
            if samples := [update for update in updates if not isinstance(update, TextDelta)]:
                await asyncio.to_thread(lambda samples: [self._done(sample) for sample in samples], samples)

    async def events(
        self, store: ComparisonStore, write: Callable[[Sequence[tuple[str, BaseModel]]], Written]
    ) -> AsyncIterator[Written]:
        """Yield `write` of the events that become ready together, each with its name; the last one is the comparison.

        `write` runs in a thread if it may take a while, so that it does not delay other streams.

        Raises:
            SteerserveError: a sample failed, or could not be measured.
        """

        def write_updates(updates: Sequence[TextDelta | ArmSample]) -> Written:
            return write([self._event(update) for update in updates])

        async for updates in self._generation.updates():
            has_samples = not all(isinstance(update, TextDelta) for update in updates)
            if has_samples or is_long(update.features for update in updates):
                yield await asyncio.to_thread(write_updates, updates)
            else:
                yield write_updates(updates)
        yield await asyncio.to_thread(lambda: write([("comparison.done", self.kept(store))]))

    def _event(self, update: TextDelta | ArmSample) -> tuple[str, ArmDelta | ArmDone]:
        if isinstance(update, ArmSample):
            return "arm.done", self._done(update)
        features = self._features.entries(update.features) if update.features else None
        name = self._prepared.arms[update.arm].name
        return "arm.delta", ArmDelta(arm=name, index=update.index, delta=update.text, features=features)

    def _done(self, complete: ArmSample) -> ArmDone:
        """Write a complete sample, and remember it for the whole comparison."""
        sample = self._sample(complete)
        self._samples[complete.arm, complete.index] = sample
        return ArmDone(arm=self._prepared.arms[complete.arm].name, index=complete.index, sample=sample)

    def _whole(self, *, kept: bool) -> Comparison:
        arms = [
            ArmResult(
                name=arm.name,
                control_of=arm.control_of,
                prompt_sha256=hashlib.sha256(np.array(arm.prompt_ids, dtype="<i8").tobytes()).hexdigest(),
                samples=[self._samples[arm_index, index] for index in range(self._prepared.num_samples)],
            )
            for arm_index, arm in enumerate(self._prepared.arms)
        ]
        return Comparison(
            id=self._prepared.id,
            created=self._prepared.created,
            model=self._served.model_id,
            seed=self._prepared.seed,
            kept=kept,
            arms=arms,
            metadata=self._body.metadata,
        )

    def kept(self, store: ComparisonStore) -> Comparison:
        """Write the comparison, all of whose samples are written, and keep it in `store` if the request says so.

        If it cannot be kept, the field `kept` of the result is false. Not for an event loop.
        """
        whole = self._whole(kept=self._body.store)
        if not self._body.store:
            return whole
        content = whole.model_copy(update={"request": self._request()}).model_dump_json()
        try:
            is_kept = store.add(whole.id, self._summary().model_dump(), content)
        except UnavailableError as error:
            logger.warning("comparison %s is not kept: %s", whole.id, error.message)
            is_kept = False
        return whole if is_kept else whole.model_copy(update={"kept": False})

    def _summary(self) -> KeptComparison:
        return KeptComparison(
            id=self._prepared.id,
            created=self._prepared.created,
            model=self._served.model_id,
            seed=self._prepared.seed,
            arms=[arm.name for arm in self._prepared.arms],
            n=self._prepared.num_samples,
            prompt=self._body.messages[-1].as_template_input()["content"][:_MAX_PROMPT_CHARS],
        )

    def _request(self) -> dict[str, Any]:
        """Return the request in a form that can be sent again."""
        sent = self._body.model_dump(mode="json", exclude_unset=True, exclude=set(_NOT_KEPT))
        return sent | {"seed": self._prepared.seed}

    def _sample(self, sample: ArmSample) -> Sample:
        last = sample.last
        if last is None:
            message = "a sample is written before its generation has ended"
            raise RuntimeError(message)
        return Sample(
            index=sample.index,
            text=sample.text,
            finish_reason=last.finish_reason or "stop",
            stop_reason=last.stop_reason,
            usage=_usage(last),
            steering=last.receipt.as_json(self._served.stores.label) if last.receipt is not None else None,
            metrics=self._metrics(sample),
            features=self._features.entries(sample.features) if self._prepared.watch is not None else None,
            prompt_features=(
                self._features.entries(sample.prompt_features) if sample.prompt_features is not None else None
            ),
        )

    def _metrics(self, sample: ArmSample) -> SampleMetrics | None:
        first, score = self._generation.first_of(sample), sample.score
        if score is None or first is None or first.score is None:
            return None
        edited = self._prepared.edited
        means = edited_means(score, edited)
        return SampleMetrics(
            surprise=score.surprise,
            kl=score.kl,
            kl_p95=score.kl_p95,
            repetition=repetition(sample.token_ids),
            distinct_2=distinct_2(sample.token_ids),
            relevance=score.relevance,
            first_divergence=first_divergence(sample.token_ids, first.token_ids),
            features={name: {str(feature): act for feature, act in acts.items()} for name, acts in means.items()},
            side_effects=self._side_effects(sample, first),
            tokens=sample.token_texts if self._body.by_token else None,
            features_by_token=self._by_token(sample, score) if self._body.by_token else None,
        )

    def _by_token(self, sample: ArmSample, score: SampleScore) -> dict[str, dict[str, list[float | None]]]:
        by_token = edited_by_token(score, self._prepared.edited, len(sample.token_ids))
        return {name: {str(feature): acts for feature, acts in columns.items()} for name, columns in by_token.items()}

    def _side_effects(self, sample: ArmSample, first: ArmSample) -> list[SideEffect]:
        if sample.score is None or first.score is None:
            return []
        dictionaries = {edited.dictionary.id: edited.dictionary for edited in self._prepared.edited}
        return [
            SideEffect(
                dictionary=shift.dictionary,
                feature=shift.feature,
                change=shift.change,
                label=self._served.stores.label(dictionaries[shift.dictionary], shift.feature),
            )
            for shift in side_effects(sample.score, first.score, self._prepared.edited)
        ]


def _usage(last: TokenEvent) -> Usage:
    return Usage(
        prompt_tokens=last.num_prompt_tokens,
        completion_tokens=last.num_generated_tokens,
        total_tokens=last.num_prompt_tokens + last.num_generated_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=last.num_cached_tokens),
    )
