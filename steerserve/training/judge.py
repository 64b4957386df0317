"""Measuring any dictionary on a text, whoever trained it: the figures of a report without those of the training."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from steerserve.core.errors import CorpusError, DictionarySourceError
from steerserve.core.observer import StoppedError
from steerserve.text.windows import batch_documents
from steerserve.training.activations import ActivationReader, statistics
from steerserve.training.evaluate import JudgedDictionary, count_features, evaluate_splices
from steerserve.training.report import headline, library_versions

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
    """Return the dictionary's report with figures measured now; the report's facts about its training stay.

    The corpus is split as in training: reconstructions are measured on the documents that a training on this corpus
    would hold out, and features are counted on the others.

    Args:
        lens: The model.
        dictionary: The dictionary, loaded for that model.
        corpus: The text.
        context_size: Number of tokens in a context window.
        heldout_tokens: Number of tokens that reconstructions are measured on.
        feature_tokens: Number of tokens that features are counted on.
        observer: Follows the measurement and can stop it.

    Raises:
        CorpusError: the text has no token to measure on.
        DictionarySourceError: the dictionary is a transcoder, which does not reconstruct what it reads.
        StoppedError: the observer asked for a stop.
    """
    hook = dictionary.hook_name
    if dictionary.read_hook_name != hook:
        message = (
            f"{dictionary.source} is a transcoder: it reads {dictionary.read_hook_name} and writes {hook}. "
            "A dictionary can be judged only if it reads and writes the same hook point."
        )
        raise DictionarySourceError(message)
    reader = ActivationReader(lens, (hook,), batch_documents(lens.tokenizer, corpus.training, context_size))
    profile = reader.start()
    rows = _read(reader, hook, feature_tokens, observer)
    measured = statistics(rows)
    judged = JudgedDictionary(hook, dictionary.sae, measured.mean, profile.sink_norms[hook])
    [heldout] = evaluate_splices(lens, [judged], corpus.heldout, context_size, heldout_tokens, observer)
    features = count_features(dictionary.sae, torch.from_numpy(rows.astype(np.float32)))
    figures = {**headline(heldout, features), "heldout": asdict(heldout), "features": asdict(features)}
    description = {
        "id": dictionary.id,
        "model": lens.id,
        "hook": hook,
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": dictionary.stored_dtype,
        "median_norm": measured.median_norm,
        "mean_norm": measured.mean_norm,
        "versions": library_versions(),
    }
    training = {name: value for name, value in (dictionary.report or {}).items() if name in {"training", "history"}}
    return {**figures, **description, **training, "judged_on": corpus.sources()}


def _read(reader: ActivationReader, hook: str, tokens: int, observer: Observer) -> NDArray[np.generic]:
    parts, num_rows = [], 0
    with observer.stage("Reading text", tokens) as progress:
        while num_rows < tokens and (batch := reader.read()) is not None:
            parts.append(batch[hook])
            num_rows += len(batch[hook])
            progress.update(min(num_rows, tokens))
            if observer.should_stop():
                message = "Stopped while reading text; nothing was written."
                raise StoppedError(message)
    if num_rows == 0:
        message = "The corpus has no token to measure on: all are special tokens or attention sinks. Give another text."
        raise CorpusError(message, param="corpus")
    return np.concatenate(parts)[:tokens]
