"""A whole interpretation: text, what features do in it, labels, the store, calibration. The entry that others call."""

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
from steerserve.dose.directions import direction_facts
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
    """What came out for one dictionary."""

    id: str
    source: str
    sha256: str
    store: Path
    num_tokens: int
    num_features: int
    num_live: int
    num_labelled: int
    num_calibrated: int

    def as_json(self) -> dict[str, Any]:
        """Return it as a job's result shows it."""
        return {name: getattr(self, name) for name in self.__slots__} | {"store": str(self.store)}


def interpret(options: InterpretOptions, observer: Observer) -> tuple[Interpreted, ...]:
    """Fill the dictionaries' stores; labels by people and language models, and calibrations, outlive it.

    Called again after a stop, an interrupt or a kill, with the same options and text, it goes on where the last run
    was. What is left of a run with others is dropped.

    Raises:
        ConfigError: the folder for what is unfinished cannot be written, or the model reads shorter texts.
        CorpusError: the text cannot be read or is too short.
        DictionarySourceError: a dictionary cannot be used, or its weights are not those that were meant.
        FeatureStoreError: a store cannot be written.
        ModelSourceError: the model cannot be loaded.
        StoppedError: the observer asked for it; what was done is kept.
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
    dictionaries = {one.id: _load(loader, one) for one in options.dictionaries}
    _claim(options, corpus, dictionaries)
    places = FeatureStores(options.dictionary_dirs, options.allowed_dirs)
    places.serve(lens.id, model_names(files))
    locations = {name: places.location(dictionary) for name, dictionary in dictionaries.items()}
    # What came with a dictionary is copied to where its store is written, so that labels are kept; and a file that
    # cannot be used is told before all the text is read.
    stores = {name: location.prepare() for name, location in locations.items()}
    unwritten = {
        name: dictionary
        for name, dictionary in dictionaries.items()
        if not (_mark(options, name).is_file() and stores[name].is_file())
    }
    if unwritten:
        _scan_text(lens, options, corpus, unwritten, locations, observer)
    found = []
    for name, dictionary in dictionaries.items():
        store = FeatureStore.open(locations[name].prepare())
        if options.calibrate:
            _calibrate(lens, dictionary, store, observer)
        found.append(_interpreted(dictionary, store.path))
    shutil.rmtree(options.run_dir, ignore_errors=True)
    return tuple(found)


def _load(loader: DictionaryLoader, wanted: InterpretedSource) -> Dictionary:
    dictionary = loader.load(wanted.id, wanted.source, force=wanted.force)
    if wanted.sha256 not in {None, dictionary.sha256}:
        message = (
            f"The dictionary source {wanted.source!r} has changed: its weights are no longer those that {wanted.id!r} "
            "was loaded with. Load it anew and ask again."
        )
        raise DictionarySourceError(message)
    return dictionary


def _claim(options: InterpretOptions, corpus: Corpus, dictionaries: Mapping[str, Dictionary]) -> None:
    """Make the run's folder anew, unless the unfinished run in it is this one."""
    contents = {name: dictionary.contents for name, dictionary in dictionaries.items()}
    shaping = {**options.what_shapes_the_result(), "corpus_sha256": corpus.sha256, "dictionaries": contents}
    wanted = json.loads(json.dumps(shaping))
    claim = options.run_dir / "options.json"
    try:
        if claim.is_file() and read_json(claim) == wanted:
            return
        shutil.rmtree(options.run_dir, ignore_errors=True)
        options.run_dir.mkdir(parents=True)
        write_json(claim, wanted)
    except OSError as error:
        message = f"{options.run_dir} cannot be written: {error.strerror}"
        raise ConfigError(message, param="dictionary_dirs") from error


def _scan_text(
    lens: LensModel,
    options: InterpretOptions,
    corpus: Corpus,
    dictionaries: Mapping[str, Dictionary],
    locations: Mapping[str, StoreLocation],
    observer: Observer,
) -> None:
    """Read the text, and write what was found into new stores that take the place of the old ones."""
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
        _mark(options, name).touch()


def _mark(options: InterpretOptions, name: str) -> Path:
    """Return the file that says that this run has written the store of a dictionary."""
    return options.run_dir / f"{name}.written"


def _features(
    lens: LensModel, dictionary: Dictionary, tally: Tally, created: float, observer: Observer
) -> Iterator[FeatureRecord]:
    """Yield the features' records, in order, with their labels."""
    facts = direction_facts(lens, dictionary, observer)
    peak_tokens = tally.peak_tokens.most_frequent(_NUM_PEAK_TOKENS)
    labeller = Labeller(lens.tokenizer.token_bytes, lens.tokenizer.special_ids, created)
    for feature, strongest in enumerate(tally.strongest()):
        labeller.read(feature, strongest)
    rows = zip(tally.spread.activities(), tally.snippets(), peak_tokens, facts, strict=True)
    with observer.stage("Writing features", dictionary.d_sae) as progress:
        for feature, (activity, snippets, peaks, directions) in enumerate(rows):
            found = FeatureRecord(feature, activity, snippets, peaks, *directions)
            yield replace(found, labels=labeller.labels(found))
            progress.update(feature + 1)


def _calibrate(lens: LensModel, dictionary: Dictionary, store: FeatureStore, observer: Observer) -> None:
    """Measure the features that were active and have no calibration yet."""
    known = store.calibrations().keys()
    promoted: dict[int, tuple[int, ...]] = {}
    for number in store.feature_numbers():
        found = store.feature(number) if number not in known else None
        if found is not None and found.record is not None and found.record.activity.num_active:
            promoted[number] = tuple(token_id for token_id, _ in found.record.promoted)
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
