"""A whole training run: text, activations, dictionaries, files, reports. The one entry that others call."""

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
from steerserve.training.architectures import build_sae, scaling_factor, settle_threshold
from steerserve.training.batches import CachedBatches
from steerserve.training.buffer import BufferedBatches
from steerserve.training.cache import fill_cache
from steerserve.training.evaluate import FEATURE_TOKENS, Judged, count_features, evaluate_splices
from steerserve.training.export import export_sae
from steerserve.training.report import REPORT_FILE, Report, Training, library_versions, save_report
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

EVALUATION_BATCH_TOKENS = 512
"""Smaller than in training: several sets of logits over the whole vocabulary lie side by side."""
_COUNT_SEED = 0


def train(options: TrainOptions, observer: Observer) -> tuple[Path, ...]:
    """Train the dictionaries and return their folders, each with weights, `cfg.json`, `report.json` and `report.html`.

    Called again after a stop, an interrupt or a kill, with the same options and text, it goes on where the last run
    was; called again after the end it returns at once.

    Raises:
        ConfigError: the folder holds a finished dictionary or another run, or the model has no such hook point.
        CorpusError: the text cannot be read or is too short.
        ModelSourceError: the model cannot be loaded.
        StoppedError: the observer asked for it; what was done is kept.
    """
    if done := finished(options):
        return done
    corpus = load_corpus(options.prepared or options.corpus, allowed_dirs=options.text_dirs)
    _claim(options, corpus)
    with _Clock(options.run_dir / "clock.json") as clock:
        _, lens = open_model(options)
        _check_hooks(lens, options)
        batches = _activations(lens, options, corpus, observer)
        saes, histories = _train(lens, options, batches, observer)
        heldout = _judge(lens, options, corpus, batches, saes, observer)
        for one in options.dictionaries:
            report = Report(
                id=one.id,
                model=lens.id,
                hook=one.hook,
                architecture=one.architecture,
                d_in=int(saes[one.id].cfg.d_in),
                d_sae=one.d_sae,
                dtype=one.dtype,
                median_norm=batches.statistics[one.hook].median_norm,
                mean_norm=batches.statistics[one.hook].mean_norm,
                heldout=heldout[one.id],
                features=count_features(saes[one.id], batches.sample(one.hook, FEATURE_TOKENS, _COUNT_SEED)),
                training=_facts(options, one, corpus, batches, histories[one.id], clock),
                history=histories[one.id].as_json(),
            )
            save_report(report.as_json(), options.folder(one))
    if not options.keep_run:
        _tidy(options)
    return tuple(options.folder(one) for one in options.dictionaries)


def finished(options: TrainOptions) -> tuple[Path, ...]:
    """Return the folders of the dictionaries if this very run has ended before, else nothing.

    Raises:
        ConfigError: one of the folders holds a finished dictionary of another run.
    """
    folders = tuple(options.folder(one) for one in options.dictionaries)
    reports = [folder / REPORT_FILE for folder in folders if (folder / REPORT_FILE).is_file()]
    for report in reports:
        if read_json(report).get("training", {}).get("options_sha256") != options.sha256:
            message = f"{report.parent} already holds a finished dictionary of another run; give another folder."
            raise ConfigError(message, param="out")
    return folders if len(reports) == len(folders) else ()


def _tidy(options: TrainOptions) -> None:
    """Remove what only an unfinished run needs. Text that was fetched or written for it stays: it cost time."""
    for file in map(Path, options.prepared):
        if file.is_relative_to(options.run_dir) and file.is_file():
            kept = options.out / "corpus"
            kept.mkdir(exist_ok=True)
            file.replace(kept / file.name)
    shutil.rmtree(options.run_dir, ignore_errors=True)


def _claim(options: TrainOptions, corpus: Corpus) -> None:
    """Make the run's folder, or make sure that the run in it is this one."""
    wanted = json.loads(json.dumps({**options.what_shapes_the_result(), "corpus_sha256": corpus.digest}))
    claim = options.run_dir / "options.json"
    if not claim.is_file():
        try:
            options.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(claim, wanted)
        except OSError as error:
            message = f"{options.out} cannot be written: {error.strerror}"
            raise ConfigError(message, param="out") from error
        return
    found = read_json(claim)
    others = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if others:
        message = (
            f"{options.run_dir} holds an unfinished run with another {', '.join(others)}; "
            "repeat its options to go on, remove the folder, or give another one."
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
            "Take fewer."
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
    if saved := last_checkpoint(options.run_dir):
        batches.load(saved / BATCHES_FOLDER)
    else:
        batches.fill(observer)
    return batches


def _train(
    lens: LensModel, options: TrainOptions, batches: Batches, observer: Observer
) -> tuple[dict[str, SAE[Any]], dict[str, History]]:
    saes = {
        one.id: build_sae(
            one,
            batches.statistics[one.hook],
            _metadata(lens, options, one, batches),
            batches.num_steps,
            seed=options.seed,
            device=str(lens.device),
        )
        for one in options.dictionaries
    }
    scales = {one.id: scaling_factor(batches.statistics[one.hook]) for one in options.dictionaries}
    histories = train_saes(saes, scales, batches, options, observer)
    exported = {}
    for one in options.dictionaries:
        settle_threshold(saes[one.id], scales[one.id], one.hook, batches)
        exported[one.id] = export_sae(saes[one.id], scales[one.id], options.folder(one), one.dtype)
    return exported, histories


def _metadata(
    lens: LensModel, options: TrainOptions, dictionary: DictionaryOptions, batches: Batches
) -> dict[str, Any]:
    """Return what SAELens' own tools need to use the dictionary, and what the server reads."""
    known = batches.statistics[dictionary.hook]
    return {
        "model_name": lens.id,
        "hook_name": dictionary.hook,
        "context_size": options.context_size,
        "prepend_bos": lens.tokenizer.hf.bos_token_id is not None,
        "exclude_special_tokens": sorted(lens.tokenizer.special_ids),
        "steerserve": {
            "id": dictionary.id,
            "median_norm": known.median_norm,
            "mean_norm": known.mean_norm,
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
    text = batch_documents(lens.tokenizer, corpus.heldout, options.context_size, EVALUATION_BATCH_TOKENS)
    judged = [
        Judged(
            one.hook,
            saes[one.id].to(lens.device),
            batches.statistics[one.hook].mean,
            batches.calibration.sink_norms[one.hook],
        )
        for one in options.dictionaries
    ]
    found = evaluate_splices(lens, judged, text, options.num_heldout_tokens, observer)
    return {one.id: metrics for one, metrics in zip(options.dictionaries, found, strict=True)}


def _facts(
    options: TrainOptions,
    dictionary: DictionaryOptions,
    corpus: Corpus,
    batches: Batches,
    history: History,
    clock: _Clock,
) -> Training:
    return Training(
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
        together_with=[one.id for one in options.dictionaries if one.id != dictionary.id],
        wall_time_s=clock.total_s(),
        corpus_sha256=corpus.digest,
        options_sha256=options.sha256,
        sources=corpus.sources(),
        heldout_documents=len(corpus.heldout),
    )


class _Clock:
    """Counts the seconds of a run over all the calls that it took; those of a killed call are lost."""

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
