"""A dictionary measured on somebody's text, whoever trained it: the figures of a report without the training."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steerserve.core.errors import CorpusError, DictionarySourceError
from steerserve.core.observer import StoppedError
from steerserve.text.windows import batch_documents
from steerserve.training.activations import ActivationReader, statistics
from steerserve.training.evaluate import Judged, count_features, evaluate_splices
from steerserve.training.report import headline, library_versions
from steerserve.training.run import EVALUATION_BATCH_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steerserve.core.observer import Observer
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel
    from steerserve.text.corpus import Corpus


def judge(
    lens: LensModel,
    dictionary: Dictionary,
    corpus: Corpus,
    *,
    context_size: int,
    heldout_tokens: int,
    feature_tokens: int,
    observer: Observer,
) -> dict[str, Any]:
    """Return the dictionary's report with figures measured now; what it says of its training stays.

    The split is that of training: on the text that a dictionary was trained on, reconstructions are measured on what
    it has not seen. Features are counted on the other documents.

    Args:
        lens: The model.
        dictionary: Loaded for it.
        corpus: The text.
        context_size: Tokens a window.
        heldout_tokens: Tokens that reconstructions are measured on.
        feature_tokens: Tokens that features are counted on.
        observer: Is told and asked.

    Raises:
        CorpusError: the text has no token to measure on.
        DictionarySourceError: it is a transcoder, which reconstructs something else than what it reads.
        StoppedError: the observer asked for it.
    """
    hook = dictionary.hook_name
    if dictionary.read_hook_name != hook:
        message = (
            f"{dictionary.source} is a transcoder: it reads {dictionary.read_hook_name} and writes {hook}. Only what a "
            "dictionary reconstructs at the hook point that it reads can be judged."
        )
        raise DictionarySourceError(message)
    reader = ActivationReader(lens, (hook,), batch_documents(lens.tokenizer, corpus.training, context_size))
    calibration = reader.start()
    rows = _read(reader, hook, feature_tokens, observer)
    known = statistics(rows)
    judged = Judged(hook, dictionary.sae, known.mean, calibration.sink_norms[hook])
    text = batch_documents(lens.tokenizer, corpus.heldout, context_size, EVALUATION_BATCH_TOKENS)
    [heldout] = evaluate_splices(lens, [judged], text, heldout_tokens, observer)
    features = count_features(dictionary.sae, torch.from_numpy(rows.astype(np.float32)))
    described = {
        "id": dictionary.id,
        "model": lens.id,
        "hook": hook,
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": dictionary.stored_dtype,
        "median_norm": known.median_norm,
        "mean_norm": known.mean_norm,
        "versions": library_versions(),
    }
    measured = {**headline(heldout, features), "heldout": asdict(heldout), "features": asdict(features)}
    training = {name: value for name, value in (dictionary.report or {}).items() if name in {"training", "history"}}
    return {**measured, **described, **training, "judged_on": corpus.sources()}


def _read(reader: ActivationReader, hook: str, tokens: int, observer: Observer) -> NDArray[np.generic]:
    parts, num_rows = [], 0
    with observer.stage("Reading text", tokens) as progress:
        while num_rows < tokens and (found := reader.read()) is not None:
            parts.append(found[hook])
            num_rows += len(found[hook])
            progress.update(min(num_rows, tokens))
            if observer.should_stop():
                message = "Stopped while reading text; nothing was written."
                raise StoppedError(message)
    if num_rows == 0:
        message = "The corpus has no token to measure on: all are special tokens or attention sinks."
        raise CorpusError(message, param="corpus")
    return np.concatenate(parts)[:tokens]
