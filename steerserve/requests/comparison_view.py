"""A comparison as clients read it, from what its samples came to."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

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
from steerserve.requests.watching import FeatureWriter
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
    from steerserve.compare.metrics import Reading
    from steerserve.compare.store import ComparisonStore
    from steerserve.engine.request import TokenEvent
    from steerserve.requests.comparing import ComparisonGeneration, GrownSample, NewText
    from steerserve.requests.comparison import PreparedComparison
    from steerserve.requests.served import ServedModel
    from steerserve.wire.compare import ComparisonRequest

logger = logging.getLogger(__name__)

_MAX_PROMPT_CHARS = 200
_NOT_KEPT = frozenset({"stream", "stream_options", "store", "metadata"})
"""What of a request says nothing of the comparison."""


class ComparisonWriter:
    """Writes the samples of one comparison, and in the end the whole."""

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

    def delta(self, new: NewText) -> ArmDelta:
        """Write new text."""
        features = self._features.entries(new.features) if new.features else None
        return ArmDelta(arm=self._prepared.arms[new.arm].name, index=new.index, delta=new.text, features=features)

    def done(self, grown: GrownSample) -> ArmDone:
        """Write a complete sample, and keep it for the whole."""
        sample = self._sample(grown)
        self._samples[grown.arm, grown.index] = sample
        return ArmDone(arm=self._prepared.arms[grown.arm].name, index=grown.index, sample=sample)

    def whole(self, *, kept: bool) -> Comparison:
        """Write the comparison, of which every sample has been written."""
        arms = [
            ArmResult(
                name=arm.name,
                control_of=arm.control_of,
                prompt_sha256=hashlib.sha256(np.array(arm.prompt_ids, dtype="<i8").tobytes()).hexdigest(),
                samples=[self._samples[place, index] for index in range(self._prepared.num_samples)],
            )
            for place, arm in enumerate(self._prepared.arms)
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
        """Write the comparison, and keep it in `store` if the request says so; not for an event loop.

        If it cannot be kept, `kept` is false in what this returns.
        """
        whole = self.whole(kept=self._body.store)
        if not self._body.store:
            return whole
        content = whole.model_copy(update={"request": self.request()}).model_dump_json()
        try:
            is_kept = store.add(whole.id, self.summary().model_dump(), content)
        except UnavailableError as error:
            logger.warning("comparison %s is not kept: %s", whole.id, error.message)
            is_kept = False
        return whole if is_kept else whole.model_copy(update={"kept": False})

    def summary(self) -> KeptComparison:
        """Write what lists show of the comparison."""
        return KeptComparison(
            id=self._prepared.id,
            created=self._prepared.created,
            model=self._served.model_id,
            seed=self._prepared.seed,
            arms=[arm.name for arm in self._prepared.arms],
            n=self._prepared.num_samples,
            prompt=self._body.messages[-1].as_template_input()["content"][:_MAX_PROMPT_CHARS],
        )

    def request(self) -> dict[str, Any]:
        """Write what was asked for, so that it can be asked for again."""
        sent = self._body.model_dump(mode="json", exclude_unset=True, exclude=set(_NOT_KEPT))
        return sent | {"seed": self._prepared.seed}

    def _sample(self, grown: GrownSample) -> Sample:
        last = grown.last
        if last is None:
            message = "only a sample whose generation has ended is written"
            raise RuntimeError(message)
        return Sample(
            index=grown.index,
            text=grown.text,
            finish_reason=last.finish_reason or "stop",
            stop_reason=last.stop_reason,
            usage=_usage(last),
            steering=last.receipt.as_json(self._served.stores.label) if last.receipt is not None else None,
            metrics=self._metrics(grown),
            features=self._features.entries(grown.features) if self._prepared.watch is not None else None,
            prompt_features=(
                self._features.entries(grown.prompt_features) if grown.prompt_features is not None else None
            ),
        )

    def _metrics(self, grown: GrownSample) -> SampleMetrics | None:
        first, reading = self._generation.first_of(grown), grown.reading
        if reading is None or first is None or first.reading is None:
            return None
        edited = self._prepared.edited
        means = edited_means(reading, edited)
        return SampleMetrics(
            surprise=reading.surprise,
            kl=reading.kl,
            kl_p95=reading.kl_p95,
            repetition=repetition(grown.token_ids),
            distinct_2=distinct_2(grown.token_ids),
            relevance=reading.relevance,
            first_divergence=first_divergence(grown.token_ids, first.token_ids),
            features={name: {str(feature): act for feature, act in acts.items()} for name, acts in means.items()},
            side_effects=self._side_effects(grown, first),
            tokens=grown.token_texts if self._body.by_token else None,
            features_by_token=self._by_token(grown, reading) if self._body.by_token else None,
        )

    def _by_token(self, grown: GrownSample, reading: Reading) -> dict[str, dict[str, list[float | None]]]:
        found = edited_by_token(reading, self._prepared.edited, len(grown.token_ids))
        return {name: {str(feature): acts for feature, acts in columns.items()} for name, columns in found.items()}

    def _side_effects(self, grown: GrownSample, first: GrownSample) -> list[SideEffect]:
        if grown.reading is None or first.reading is None:
            return []
        dictionaries = {one.dictionary.id: one.dictionary for one in self._prepared.edited}
        return [
            SideEffect(
                dictionary=shift.dictionary,
                feature=shift.feature,
                change=shift.change,
                label=self._served.stores.label(dictionaries[shift.dictionary], shift.feature),
            )
            for shift in side_effects(grown.reading, first.reading, self._prepared.edited)
        ]


def _usage(last: TokenEvent) -> Usage:
    return Usage(
        prompt_tokens=last.num_prompt_tokens,
        completion_tokens=last.num_generated_tokens,
        total_tokens=last.num_prompt_tokens + last.num_generated_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=last.num_cached_tokens),
    )
