"""Which features separate two sets of texts: from the request to its answer."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from steerserve.contrast.contrast import SIGNIFICANT, ready_steering
from steerserve.contrast.contrast import contrast as rank_candidates
from steerserve.contrast.separation import smallest_p_value
from steerserve.contrast.text_sets import read_text_sets
from steerserve.core.errors import FeatureStoreError
from steerserve.requests.features import calibration_fields
from steerserve.wire.texts import ContrastFeature, ContrastObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.contrast.separation import Candidate
    from steerserve.contrast.text_sets import TextSets
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.requests.served import ServedModel
    from steerserve.store.records import Calibration
    from steerserve.wire.texts import ContrastRequest

_log = logging.getLogger(__name__)


async def contrast(served: ServedModel, body: ContrastRequest) -> ContrastObject:
    """Return the features that separate two sets of texts, tested against chance, and edits towards the first set.

    Raises:
        SteerserveError: the request cannot be honoured.
    """
    served.check_ready()
    served.check_plain_model(body.model)
    dictionary = served.registry.snapshot().find(body.dictionary, "dictionary")
    sets = await asyncio.to_thread(
        read_text_sets, served.tokenizer, body.positive, body.negative, served.context_length
    )
    candidates = await rank_candidates(served.engine, dictionary, sets, body.limit, served.contrast_queue)
    features = [candidate.feature for candidate in candidates]
    labels = await asyncio.to_thread(served.stores.labels, dictionary, features)
    calibrations = await asyncio.to_thread(_calibrations, served, dictionary, features)
    steering = ready_steering(candidates, dictionary, calibrations, body.max_edits)
    return ContrastObject(
        model=served.model_id,
        dictionary=dictionary.id,
        held_out_auc=candidates[0].held_out_auc if candidates else None,
        data=[
            _row(candidate, labels.get(candidate.feature), calibrations.get(candidate.feature))
            for candidate in candidates
        ],
        steering=steering,
        warnings=_warnings(sets, body, steering),
    )


def _calibrations(served: ServedModel, dictionary: Dictionary, features: Sequence[int]) -> dict[int, Calibration]:
    """Return the calibrations of features; none if the store cannot be read, as the answer is useful without them."""
    store = served.stores.find(dictionary)
    try:
        calibrations = store.calibrations() if store is not None else {}
    except FeatureStoreError as error:
        _log.warning("dictionary %s: %s", dictionary.id, error.message)
        calibrations = {}
    return {feature: calibrations[feature] for feature in features if feature in calibrations}


def _row(candidate: Candidate, label: str | None, calibration: Calibration | None) -> ContrastFeature:
    return ContrastFeature(
        feature=candidate.feature,
        label=label,
        auc=candidate.auc,
        held_out_auc=candidate.held_out_auc,
        p_value=candidate.p_value,
        mean_difference=candidate.mean_difference,
        positive_mean=candidate.positive_mean,
        negative_mean=candidate.negative_mean,
        **calibration_fields(calibration),
    )


def _warnings(sets: TextSets, body: ContrastRequest, steering: Sequence[object]) -> list[str]:
    warnings = []
    if sets.num_repeated:
        warnings.append(f"Repeated texts count once: {sets.num_repeated} repetitions were ignored.")
    least = smallest_p_value(sets.num_positive, len(sets.rows) - sets.num_positive)
    if least > SIGNIFICANT:
        warnings.append(
            f"With so few texts no p_value can be below {least:.2g}, so no difference can be told from chance. Send "
            "more texts."
        )
    if not steering and body.max_edits:
        warnings.append("No feature marks the positive texts better than chance explains, so 'steering' is empty.")
    return warnings
