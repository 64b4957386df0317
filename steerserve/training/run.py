"""A whole training run, from text to dictionaries with their reports: what commands and jobs call."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from steerserve.core.errors import ConfigError
from steerserve.core.files import read_json, write_json
from steerserve.model.opening import open_model
from steerserve.text.corpus import load_corpus
from steerserve.text.windows import batch_documents
from steerserve.training.activations import ActivationReader
from steerserve.training.architectures import build_sae, scaling_factor, set_threshold
from steerserve.training.batches import CachedBatches
from steerserve.training.buffer import BufferedBatches
from steerserve.training.cache import fill_cache
from steerserve.training.evaluate import FEATURE_TOKENS, JudgedDictionary, count_features, evaluate_splices
from steerserve.training.export import export_sae
from steerserve.training.report import REPORT_FILE, DictionaryReport, TrainingFacts, library_versions, save_report
from steerserve.training.trainer import BATCHES_FOLDER, last_checkpoint, train_saes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sae_lens import SAE

    from steerserve.core.observer import Observer
    from steerserve.model.lens import LensModel
    from steerserve.text.corpus import Corpus
    from steerserve.training.batches import Batches
    from steerserve.training.evaluate import SpliceMetrics
    from steerserve.training.history import History
    from steerserve.training.options import DictionaryOptions, TrainOptions

_COUNT_SEED = 0


def train(options: TrainOptions, observer: Observer) -> tuple[Path, ...]:
    """Train the dictionaries and return their folders, each with weights, `cfg.json`, `report.json` and `report.html`.

    Called again with the same options and text after a stop, an interrupt or a kill, it resumes. Called again after the
    end, it returns at once.

    Raises:
        ConfigError: the folder holds a finished dictionary or another run, or the model has no such hook point.
        CorpusError: the text cannot be read or is too short.
        ModelSourceError: the model cannot be loaded.
        StoppedError: the observer asked for a stop; the run can be resumed.
    """
    if folders := finished(options):
        return folders
    corpus = load_corpus(options.prepared or options.corpus, allowed_dirs=options.text_dirs)
    _claim(options, corpus)
    with _Clock(options.run_dir / "clock.json") as clock:
        _, lens = open_model(options)
        _check_hooks(lens, options)
        batches = _activations(lens, options, corpus, observer)
        saes, histories = _train(lens, options, batches, observer)
        heldout = _judge(lens, options, corpus, batches, saes, observer)
        for dictionary in options.dictionaries:
            sae, history = saes[dictionary.id], histories[dictionary.id]
            report = DictionaryReport(
                id=dictionary.id,
                model=lens.id,
                hook=dictionary.hook,
                architecture=dictionary.architecture,
                d_in=int(sae.cfg.d_in),
                d_sae=dictionary.d_sae,
                dtype=dictionary.dtype,
                median_norm=batches.statistics[dictionary.hook].median_norm,
                mean_norm=batches.statistics[dictionary.hook].mean_norm,
                heldout=heldout[dictionary.id],
                features=count_features(sae, batches.sample(dictionary.hook, FEATURE_TOKENS, _COUNT_SEED)),
                training=_facts(options, dictionary, corpus, batches, history, clock),
                history=history.as_json(),
            )
            save_report(report.as_json(), options.folder(dictionary))
    if not options.keep_run:
        _remove_run(options)
    return tuple(map(options.folder, options.dictionaries))


def finished(options: TrainOptions) -> tuple[Path, ...]:
    """Return the folders of the dictionaries if a run with these options has ended before, else an empty tuple.

    Raises:
        ConfigError: one of the folders holds a finished dictionary of another run.
    """
    folders = tuple(map(options.folder, options.dictionaries))
    reports = [folder / REPORT_FILE for folder in folders if (folder / REPORT_FILE).is_file()]
    for report in reports:
        if read_json(report).get("training", {}).get("options_sha256") != options.sha256:
            message = f"{report.parent} already holds a finished dictionary of another run. Give another folder."
            raise ConfigError(message, param="out")
    return folders if len(reports) == len(folders) else ()


def _remove_run(options: TrainOptions) -> None:
    """Remove the run's folder. Text that was fetched or written for it is moved to `OUT/corpus`, since it took time."""
    for file in map(Path, options.prepared):
        if file.is_relative_to(options.run_dir) and file.is_file():
            folder = options.out / "corpus"
            folder.mkdir(exist_ok=True)
            file.replace(folder / file.name)
    shutil.rmtree(options.run_dir, ignore_errors=True)


def _claim(options: TrainOptions, corpus: Corpus) -> None:
    """Write the run's options to its folder, or check that the unfinished run in the folder has the same ones."""
    own = json.loads(json.dumps({**options.what_shapes_the_result(), "corpus_sha256": corpus.sha256}))
    claim = options.run_dir / "options.json"
    if not claim.is_file():
        try:
            options.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(claim, own)
        except OSError as error:
            message = f"{options.out} cannot be written: {error.strerror}"
            raise ConfigError(message, param="out") from error
        return
    existing = read_json(claim)
    differing = sorted(name for name in own | existing if own.get(name) != existing.get(name))
    if differing:
        message = (
            f"{options.run_dir} holds an unfinished run with another {', '.join(differing)}. "
            "Give its options again to resume it, remove the folder, or give another one."
        )
        raise ConfigError(message, param="out")


def _check_hooks(lens: LensModel, options: TrainOptions) -> None:
    for hook in options.hooks:
        if hook not in lens.hook_names:
            message = f"The model {lens.id} has no hook point {hook}. It has {lens.offered_hooks}."
            raise ConfigError(message, param="hook")
    if options.context_size > lens.max_context:
        message = (
            f"context_size is {options.context_size}, and {lens.id} reads {lens.max_context} tokens at most. "
            "Give a smaller one."
        )
        raise ConfigError(message, param="context_size")


def _activations(lens: LensModel, options: TrainOptions, corpus: Corpus, observer: Observer) -> Batches:
    def open_text() -> ActivationReader:
        text = batch_documents(lens.tokenizer, corpus.training, options.context_size)
        return ActivationReader(lens, options.hooks, text)

    if options.storage == "disk":
        cache = fill_cache(open_text(), options.run_dir / "activations", options.tokens, observer)
        return CachedBatches(cache, options.tokens_a_step, options.num_epochs, options.seed)
    total = options.tokens * options.num_epochs
    num_bytes = options.buffer_mb * 1_000_000
    batches = BufferedBatches(open_text, total, options.tokens_a_step, num_bytes=num_bytes, seed=options.seed)
    if checkpoint := last_checkpoint(options.run_dir):
        batches.load(checkpoint / BATCHES_FOLDER)
    else:
        batches.fill(observer)
    return batches


def _train(
    lens: LensModel, options: TrainOptions, batches: Batches, observer: Observer
) -> tuple[dict[str, SAE[Any]], dict[str, History]]:
    saes = {
        dictionary.id: build_sae(
            dictionary,
            batches.statistics[dictionary.hook],
            _metadata(lens, options, dictionary, batches),
            batches.num_steps,
            seed=options.seed,
            device=str(lens.device),
        )
        for dictionary in options.dictionaries
    }
    factors = {
        dictionary.id: scaling_factor(batches.statistics[dictionary.hook]) for dictionary in options.dictionaries
    }
    histories = train_saes(saes, factors, batches, options, observer)
    exported = {}
    for dictionary in options.dictionaries:
        sae, factor = saes[dictionary.id], factors[dictionary.id]
        set_threshold(sae, factor, dictionary.hook, batches)
        exported[dictionary.id] = export_sae(sae, factor, options.folder(dictionary), dictionary.dtype)
    return exported, histories


def _metadata(
    lens: LensModel, options: TrainOptions, dictionary: DictionaryOptions, batches: Batches
) -> dict[str, Any]:
    """Return the metadata that SAELens' tools need, and under `steerserve` what the server reads."""
    statistics = batches.statistics[dictionary.hook]
    return {
        "model_name": lens.id,
        "hook_name": dictionary.hook,
        "context_size": options.context_size,
        "prepend_bos": lens.tokenizer.hf.bos_token_id is not None,
        "exclude_special_tokens": sorted(lens.tokenizer.special_ids),
        "steerserve": {
            "id": dictionary.id,
            "median_norm": statistics.median_norm,
            "mean_norm": statistics.mean_norm,
            "versions": library_versions(),
        },
    }


def _judge(
    lens: LensModel,
    options: TrainOptions,
    corpus: Corpus,
    batches: Batches,
    saes: Mapping[str, SAE[Any]],
    observer: Observer,
) -> dict[str, SpliceMetrics]:
    judged = [
        JudgedDictionary(
            dictionary.hook,
            saes[dictionary.id].to(lens.device),
            batches.statistics[dictionary.hook].mean,
            batches.profile.sink_norms[dictionary.hook],
        )
        for dictionary in options.dictionaries
    ]
    num_tokens = options.num_heldout_tokens
    metrics = evaluate_splices(lens, judged, corpus.heldout, options.context_size, num_tokens, observer)
    return {dictionary.id: values for dictionary, values in zip(options.dictionaries, metrics, strict=True)}


def _facts(
    options: TrainOptions,
    dictionary: DictionaryOptions,
    corpus: Corpus,
    batches: Batches,
    history: History,
    clock: _Clock,
) -> TrainingFacts:
    return TrainingFacts(
        tokens=batches.num_tokens,
        sinks_left_out=batches.num_sinks,
        epochs=options.num_epochs,
        steps=batches.num_steps,
        batch_size=batches.batch_size,
        lr=dictionary.lr,
        k=dictionary.k,
        l1_coefficient=dictionary.sparsity,
        resampled=history.num_resampled,
        seed=options.seed,
        context_size=options.context_size,
        storage=options.storage,
        together_with=[other.id for other in options.dictionaries if other.id != dictionary.id],
        wall_time_s=clock.total_s(),
        corpus_sha256=corpus.sha256,
        options_sha256=options.sha256,
        sources=corpus.sources(),
        heldout_documents=len(corpus.heldout),
    )


class _Clock:
    """Adds up the seconds of all calls of a run that is stopped and resumed; those of a killed call are lost."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before = float(read_json(file)["wall_time_s"]) if file.is_file() else 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        write_json(self._file, {"wall_time_s": self.total_s()})

    def total_s(self) -> float:
        return self._before + time.monotonic() - self._start
