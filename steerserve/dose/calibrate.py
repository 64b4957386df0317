"""What features do when their directions are added: the raw scale of one dose, and how visibly they write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from steerserve.core.observer import StoppedError
from steerserve.dose.direction_facts import NUM_PROMOTED
from steerserve.dose.dose_search import TYPICAL_PART, DoseSearch, find_doses, usual_dose
from steerserve.dose.prompts import calibration_ids, more_ids, neutral_ids
from steerserve.dose.pushed_text import PushedText
from steerserve.engine.background import run_pieces
from steerserve.store.records import Calibration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.core.observer import Observer
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.background import Pieces
    from steerserve.model.lens import LensModel

_CHUNK = 64
"""Features that are measured and stored together."""


@dataclass(frozen=True, slots=True)
class CalibrationTexts:
    """The built-in texts, read at a dictionary's hook point."""

    text: PushedText
    """Texts on which every dose is measured."""
    more: PushedText
    """Further texts for features whose effect is large at few tokens."""
    neutral: PushedText
    """Prompt on which output scores are measured."""
    usual_dose: float
    """Norm of one dose of most directions."""


@torch.inference_mode()
def calibrate_features(
    lens: LensModel,
    dictionary: Dictionary,
    features: Sequence[int],
    *,
    promoted: Mapping[int, Sequence[int]] | None,
    observer: Observer,
    write: Callable[[dict[int, Calibration]], None],
) -> None:
    """Measure features and write their calibrations every few seconds; features without a dose are left out.

    Called again with the features that are missing, it goes on where it was stopped: a feature's calibration does not
    depend on which others are measured.

    Args:
        lens: The model, which nothing else uses meanwhile.
        dictionary: Dictionary of the features.
        features: Features in the order in which they are measured.
        promoted: Token ids that features promote, the strongest first; computed for features that are missing.
        observer: Gets the progress; may request a stop.
        write: Stores some calibrations.

    Raises:
        StoppedError: the observer requested a stop; calibrations that were written are kept.
    """
    with observer.stage("Calibrating features", len(features)) as progress:
        texts = run_pieces(prepare_texts(lens, dictionary))
        for first in range(0, len(features), _CHUNK):
            chunk = features[first : first + _CHUNK]
            write(run_pieces(calibrate(lens, dictionary, texts, chunk, promoted)))
            progress.update(first + len(chunk))
            if observer.should_stop() and first + len(chunk) < len(features):
                raise StoppedError("Stopped while calibrating; the same call goes on with the features that are left.")


def prepare_texts(lens: LensModel, dictionary: Dictionary, usual: float | None = None) -> Pieces[CalibrationTexts]:
    """Read the built-in texts at a dictionary's hook point; `usual` is the usual dose if it was measured before."""
    hook_name = dictionary.hook_name
    medians, gains = {hook_name: dictionary.median_norm}, {hook_name: dictionary.gains}
    text, more, neutral = (
        PushedText(lens, of(lens.tokenizer), medians, gains=gains) for of in (calibration_ids, more_ids, neutral_ids)
    )
    yield from text.read()
    if usual is None:
        guess = TYPICAL_PART * dictionary.median_norm / text.mean_gain(hook_name)
        usual = yield from usual_dose(text, hook_name, dictionary.d_out, guess)
    return CalibrationTexts(text, more, neutral, usual)


def calibrate(
    lens: LensModel,
    dictionary: Dictionary,
    texts: CalibrationTexts,
    features: Sequence[int],
    promoted: Mapping[int, Sequence[int]] | None = None,
) -> Pieces[dict[int, Calibration]]:
    """Return the calibrations of features; a feature without effect at any scale is left out."""
    live = [feature for feature in features if feature not in dictionary.zero_directions]
    if not live:
        return {}
    hook_name = dictionary.hook_name
    directions = dictionary.directions(torch.tensor(live, device=lens.device)).float()
    searches = [DoseSearch(texts.usual_dose / norm) for norm in directions.norm(dim=-1).tolist()]
    doses = yield from find_doses(texts.text, {hook_name: directions}, searches, texts.more)
    dosed = [index for index, dose in enumerate(doses) if dose is not None]
    if not dosed:
        return {}
    strengths = torch.tensor([doses[index] or 0.0 for index in dosed], device=lens.device)
    pushes = directions[dosed] * strengths[:, None]
    logits = yield from texts.neutral.last_logits({hook_name: pushes})
    tokens = _promoted_tokens(lens, dictionary, directions[dosed], [live[index] for index in dosed], promoted)
    scores = [output_score(row, ids) for row, ids in zip(logits, tokens, strict=True)]
    return {
        live[index]: Calibration(float(strength), score)
        for index, strength, score in zip(dosed, strengths.tolist(), scores, strict=True)
    }


def calibrate_vector(
    lens: LensModel, layers: Mapping[str, Float[Tensor, " width"]], median_norms: Mapping[str, float]
) -> Pieces[float | None]:
    """Return the scale at which a vector, added at all of its hook points, is one dose; None if no scale is.

    Args:
        lens: The model.
        layers: Directions by hook point.
        median_norms: Median norm of the values at each hook point of the model.
    """
    medians = {name: median_norms[name] for name in layers}
    text, more = (PushedText(lens, of(lens.tokenizer), medians) for of in (calibration_ids, more_ids))
    directions = {name: values[None].to(lens.device, torch.float32) for name, values in layers.items()}
    parts = [float(values.norm()) / median_norms[name] for name, values in directions.items()]
    if not sum(parts):
        return None
    search = DoseSearch(TYPICAL_PART / sum(parts))
    [dose] = yield from find_doses(text, directions, [search], more)
    return dose


def output_score(logits: Float[Tensor, " vocab"], token_ids: Sequence[int]) -> float:
    """Return how likely the best of some tokens is: its (1 - rank / vocabulary) * p; the likeliest token has rank 0.

    Source: Arad et al. 2025, arXiv 2505.20063, section 3.
    """
    probs = logits.softmax(-1)
    ranks = [int((logits > logits[token_id]).sum()) for token_id in token_ids]
    return max(
        ((1 - rank / len(logits)) * float(probs[token_id]) for rank, token_id in zip(ranks, token_ids, strict=True)),
        default=0.0,
    )


def _promoted_tokens(
    lens: LensModel,
    dictionary: Dictionary,
    directions: Float[Tensor, "features d_out"],
    features: Sequence[int],
    promoted: Mapping[int, Sequence[int]] | None,
) -> list[Sequence[int]]:
    promoted = promoted or {}
    tokens: list[Sequence[int]] = [promoted.get(feature, ()) for feature in features]
    missing = [index for index, feature in enumerate(features) if feature not in promoted]
    writes_stream = dictionary.d_out == lens.d_model == lens.unembedding.width
    if missing and writes_stream:
        logits = lens.unembed(directions[missing])[:, : lens.tokenizer.vocab_size]
        best = logits.topk(min(NUM_PROMOTED, logits.shape[1])).indices
        for index, token_ids in zip(missing, best.tolist(), strict=True):
            tokens[index] = token_ids
    return tokens
