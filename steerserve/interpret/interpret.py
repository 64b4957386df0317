"""A whole interpretation: scan text, make labels, write the feature stores, calibrate."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError, DictionarySourceError
from steerserve.core.files import read_json, write_json
from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.dose.calibrate import calibrate_features
from steerserve.dose.direction_facts import direction_facts
from steerserve.interpret.autolabels import Labeller
from steerserve.interpret.scan import scan
from steerserve.model.names import model_names
from steerserve.model.norms import measure_norms
from steerserve.model.opening import open_model
from steerserve.store.records import FeatureRecord
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta
from steerserve.store.stores import FeatureStores
from steerserve.text.corpus import load_corpus
from steerserve.text.windows import batch_documents
from steerserve.training.report import library_versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from steerserve.core.observer import Observer
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.interpret.options import InterpretedSource, InterpretOptions
    from steerserve.interpret.tally import Tally
    from steerserve.model.lens import LensModel
    from steerserve.store.location import StoreLocation
    from steerserve.text.corpus import Corpus

_NUM_PEAK_TOKENS = 10


@dataclass(frozen=True, slots=True)
class Interpreted:
    """Result of the interpretation of one dictionary."""

    id: str
    """Name of the dictionary in the run."""
    source: str
    """Source of the dictionary."""
    sha256: str
    """SHA-256 of its weights file."""
    store: Path
    """File of its feature store."""
    num_tokens: int
    """Number of tokens that were counted."""
    num_features: int
    """Number of its features."""
    num_live: int
    """Number of features that were active at all."""
    num_labelled: int
    """Number of features with a label."""
    num_calibrated: int
    """Number of features with a calibration."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON, as a job shows it."""
        return {name: getattr(self, name) for name in self.__slots__} | {"store": str(self.store)}


def interpret(options: InterpretOptions, observer: Observer) -> tuple[Interpreted, ...]:
    """Write the dictionaries' feature stores; keep calibrations and labels by people and language models.

    Called again with the same options and text after a stop, an interrupt or a kill, it goes on from there. The state
    of an unfinished run with other options is deleted.

    Raises:
        ConfigError: the folder for unfinished runs cannot be written, or the model's context is too short.
        CorpusError: the text cannot be read or is too short.
        DictionarySourceError: a dictionary cannot be used, or its weights do not have the given SHA-256.
        FeatureStoreError: a store cannot be written.
        ModelSourceError: the model cannot be loaded.
        StoppedError: the observer requested a stop; finished work is kept.
    """
    corpus = load_corpus(options.prepared or options.corpus, allowed_dirs=options.text_dirs)
    files, lens = open_model(options)
    if options.context_size > lens.max_context:
        message = (
            f"The model {lens.id} reads at most {lens.max_context} tokens; context_size is {options.context_size}."
        )
        raise ConfigError(message, param="context_size")
    loader = DictionaryLoader(
        lens=lens,
        model_names=model_names(files),
        norms=measure_norms(lens),
        allowed_dirs=options.allowed_dirs,
        max_bytes=options.max_dictionary_bytes,
    )
    dictionaries = {source.id: _load(loader, source) for source in options.dictionaries}
    _prepare_run(options, corpus, dictionaries)
    feature_stores = FeatureStores(options.dictionary_dirs, options.allowed_dirs)
    feature_stores.serve(lens.id, model_names(files))
    locations = {name: feature_stores.location(dictionary) for name, dictionary in dictionaries.items()}
    # Before the text is read: it copies shipped stores, so that their labels are kept, and refuses unusable files.
    paths = {name: location.prepare() for name, location in locations.items()}
    unwritten = {
        name: dictionary
        for name, dictionary in dictionaries.items()
        if not (_written_mark(options, name).is_file() and paths[name].is_file())
    }
    if unwritten:
        _scan_text(lens, options, corpus, unwritten, locations, observer)
    results = []
    for name, dictionary in dictionaries.items():
        store = FeatureStore.open(locations[name].prepare())
        if options.calibrate:
            _calibrate(lens, dictionary, store, observer)
        results.append(_interpreted(dictionary, store.path))
    shutil.rmtree(options.run_dir, ignore_errors=True)
    return tuple(results)


def _load(loader: DictionaryLoader, source: InterpretedSource) -> Dictionary:
    dictionary = loader.load(source.id, source.source, force=source.force)
    if source.sha256 not in {None, dictionary.sha256}:
        message = (
            f"The dictionary source {source.source!r} has changed: its weights are no longer those that {source.id!r} "
            "was loaded with. Load the dictionary again, then interpret it."
        )
        raise DictionarySourceError(message)
    return dictionary


def _prepare_run(options: InterpretOptions, corpus: Corpus, dictionaries: Mapping[str, Dictionary]) -> None:
    """Empty the run's folder, unless it has the state of an unfinished run with the same options."""
    contents = {name: dictionary.contents for name, dictionary in dictionaries.items()}
    run_options = {**options.what_shapes_the_result(), "corpus_sha256": corpus.sha256, "dictionaries": contents}
    content = json.loads(json.dumps(run_options))
    file = options.run_dir / "options.json"
    try:
        if file.is_file() and read_json(file) == content:
            return
        shutil.rmtree(options.run_dir, ignore_errors=True)
        options.run_dir.mkdir(parents=True)
        write_json(file, content)
    except OSError as error:
        message = f"{options.run_dir} cannot be written: {error.strerror}."
        raise ConfigError(message, param="dictionary_dirs") from error


def _scan_text(
    lens: LensModel,
    options: InterpretOptions,
    corpus: Corpus,
    dictionaries: Mapping[str, Dictionary],
    locations: Mapping[str, StoreLocation],
    observer: Observer,
) -> None:
    """Scan the text, and write the records of all features into new stores that replace the old ones."""
    documents = itertools.chain(corpus.training, corpus.heldout)
    batches = batch_documents(lens.tokenizer, documents, options.context_size)
    tallies = scan(lens, dictionaries, batches, options.tokens, options.run_dir / "tally.safetensors", observer)
    for name, dictionary in dictionaries.items():
        tally = tallies.pop(name)
        subject = locations[name].subject
        meta = StoreMeta(
            dictionary_sha256=dictionary.sha256,
            d_sae=dictionary.d_sae,
            model=subject.model,
            num_tokens=int(tally.spread.num_tokens),
            sources=tuple(corpus.sources()),
            versions=library_versions(),
            created=time.time(),
            contents=subject.contents,
        )
        features = _features(lens, dictionary, tally, meta.created, observer)
        with locations[name].replacing(meta) as store:
            store.write_features(features, lens.tokenizer.token_bytes)
        _written_mark(options, name).touch()


def _written_mark(options: InterpretOptions, name: str) -> Path:
    """Return the file whose existence says that this run has written the store of a dictionary."""
    return options.run_dir / f"{name}.written"


def _features(
    lens: LensModel, dictionary: Dictionary, tally: Tally, created: float, observer: Observer
) -> Iterator[FeatureRecord]:
    """Yield the records of all features, in order, with automatic labels."""
    facts = direction_facts(lens, dictionary, observer)
    peak_tokens = tally.peak_tokens.most_frequent(_NUM_PEAK_TOKENS)
    labeller = Labeller(lens.tokenizer.token_bytes, lens.tokenizer.special_ids, created)
    for feature, strongest in enumerate(tally.strongest()):
        labeller.read(feature, strongest)
    rows = zip(tally.spread.activities(), tally.snippets(), peak_tokens, facts, strict=True)
    with observer.stage("Writing features", dictionary.d_sae) as progress:
        for feature, (activity, snippets, peaks, directions) in enumerate(rows):
            record = FeatureRecord(feature, activity, snippets, peaks, *directions)
            yield replace(record, labels=labeller.labels(record))
            progress.update(feature + 1)


def _calibrate(lens: LensModel, dictionary: Dictionary, store: FeatureStore, observer: Observer) -> None:
    """Measure the features that were active and have no calibration yet."""
    calibrated = store.calibrations().keys()
    promoted: dict[int, tuple[int, ...]] = {}
    for feature in store.feature_numbers():
        stored = store.feature(feature) if feature not in calibrated else None
        if stored is not None and stored.record is not None and stored.record.activity.num_active:
            promoted[feature] = tuple(token_id for token_id, _ in stored.record.promoted)
    if promoted:
        calibrate_features(
            lens, dictionary, list(promoted), promoted=promoted, observer=observer, write=store.write_calibrations
        )


def _interpreted(dictionary: Dictionary, path: Path) -> Interpreted:
    store = FeatureStore.open(path)
    counts = store.counts()
    return Interpreted(
        id=dictionary.id,
        source=dictionary.source,
        sha256=dictionary.sha256,
        store=path,
        num_tokens=store.meta().num_tokens,
        num_features=counts.num_features,
        num_live=counts.num_live,
        num_labelled=counts.num_labelled,
        num_calibrated=counts.num_calibrated,
    )
