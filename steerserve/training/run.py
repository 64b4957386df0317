"""A whole training run: text, activations, dictionary, files, report. The one entry that others call."""

from __future__ import annotations

import json
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError
from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model
from steerserve.training.activations import harvest, statistics
from steerserve.training.architectures import build_sae, scaling_factor
from steerserve.training.batches import BatchProvider
from steerserve.training.corpus import Corpus, load_corpus
from steerserve.training.evaluate import count_features, evaluate_splice
from steerserve.training.export import export_sae
from steerserve.training.files import write_json
from steerserve.training.progress import stage
from steerserve.training.report import Report, Training, library_versions
from steerserve.training.trainer import total_steps, train_sae
from steerserve.training.windows import Windower, batch_windows

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from sae_lens import SAE

    from steerserve.model.lens import LensModel
    from steerserve.training.activations import ActivationStatistics
    from steerserve.training.evaluate import SpliceMetrics
    from steerserve.training.options import TrainOptions

_REPORT = "report.json"
_EVALUATION_BATCH_TOKENS = 512
"""Smaller than in training: four sets of logits over the whole vocabulary lie side by side."""
log = logging.getLogger(__name__)


def train(options: TrainOptions) -> Path:
    """Train a dictionary and return the folder with its weights, `cfg.json` and `report.json`.

    Called again after an interrupt or a kill, with the same options and text, it goes on where the last run was.

    Raises:
        ConfigError: the folder holds a finished dictionary or another run, or the model has no such hook point.
        CorpusError: the text cannot be read or is too short.
        ModelSourceError: the model cannot be loaded.
    """
    start = time.monotonic()
    corpus = load_corpus(options.corpus)
    _claim(options, corpus)
    lens = load_lens(fetch_model(options.model), device=options.device, dtype="auto")
    if options.hook not in lens.hook_names:
        message = f"The model {lens.id} has no hook point {options.hook}; its last is {lens.hook_names[-1]}."
        raise ConfigError(message, param="hook")
    rows, sink_norm, num_sinks = _activations(lens, options, corpus)
    known = statistics(rows)
    log.info("%d tokens, norm median %.1f mean %.1f", len(rows), known.median_norm, known.mean_norm)
    provider = BatchProvider(rows, options.batch_size, options.seed)
    sae = _train(lens, options, provider, known)
    report = Report(
        id=options.id,
        model=lens.id,
        hook=options.hook,
        architecture=options.architecture,
        d_in=lens.d_model,
        d_sae=options.d_sae,
        dtype=options.dtype,
        median_norm=known.median_norm,
        mean_norm=known.mean_norm,
        heldout=_evaluate(lens, options, corpus, sae, known, sink_norm),
        features=count_features(sae, rows),
        training=Training(
            tokens=len(rows),
            sinks_left_out=num_sinks,
            epochs=options.epochs,
            steps=total_steps(options, provider),
            batch_size=provider.batch_size,
            lr=options.lr,
            seed=options.seed,
            context_size=options.context_size,
            wall_time_s=time.monotonic() - start,
            corpus_sha256=corpus.digest,
            sources=corpus.sources(),
            heldout_documents=len(corpus.heldout),
        ),
    )
    report.save(options.out / _REPORT)
    if not options.keep_run:
        shutil.rmtree(options.run_dir)
    return options.out


def _claim(options: TrainOptions, corpus: Corpus) -> None:
    """Make the run's folder, or make sure that the run in it is this one."""
    if (options.out / _REPORT).exists():
        message = f"{options.out} already holds a finished dictionary; give another folder."
        raise ConfigError(message, param="out")
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
    found = json.loads(claim.read_text(encoding="utf-8"))
    others = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if others:
        message = (
            f"{options.run_dir} holds an unfinished run with another {', '.join(others)}; "
            "repeat its options to go on, remove the folder, or give another one."
        )
        raise ConfigError(message, param="out")


def _activations(lens: LensModel, options: TrainOptions, corpus: Corpus) -> tuple[NDArray[Any], float, int]:
    folder = options.run_dir / "activations"
    windows = Windower(lens.tokenizer, options.context_size).windows(corpus.training)
    batches = batch_windows(windows, lens.tokenizer.special_ids)
    with stage(f"Reading text at {options.hook}", options.tokens) as progress:
        rows = harvest(lens, options.hook, batches, folder, options.tokens, progress)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return rows, float(state["sink_norm"]), int(state["num_sinks"])


def _train(lens: LensModel, options: TrainOptions, provider: BatchProvider, known: ActivationStatistics) -> SAE[Any]:
    num_steps = total_steps(options, provider)
    scale = scaling_factor(known)
    sae = build_sae(options, known, _metadata(lens, options, known), num_steps, str(lens.device))
    with stage(f"Training {options.id}", num_steps) as progress:
        trained = train_sae(sae, provider, options, scale, progress)
    return export_sae(trained, scale, options.out, options.dtype)


def _metadata(lens: LensModel, options: TrainOptions, known: ActivationStatistics) -> dict[str, Any]:
    """Return what SAELens' own tools need to use the dictionary, and what the server reads."""
    return {
        "model_name": lens.id,
        "hook_name": options.hook,
        "context_size": options.context_size,
        "prepend_bos": lens.tokenizer.hf.bos_token_id is not None,
        "exclude_special_tokens": sorted(lens.tokenizer.special_ids),
        "steerserve": {
            "id": options.id,
            "median_norm": known.median_norm,
            "mean_norm": known.mean_norm,
            "versions": library_versions(),
        },
    }


def _evaluate(
    lens: LensModel,
    options: TrainOptions,
    corpus: Corpus,
    sae: SAE[Any],
    known: ActivationStatistics,
    sink_norm: float,
) -> SpliceMetrics:
    windows = Windower(lens.tokenizer, options.context_size).windows(corpus.heldout)
    batches = batch_windows(windows, lens.tokenizer.special_ids, _EVALUATION_BATCH_TOKENS)
    sae.to(lens.device)
    with stage("Measuring on held-out text", options.heldout_tokens) as progress:
        return evaluate_splice(
            lens, options.hook, sae, batches, known.mean, sink_norm, options.heldout_tokens, progress
        )
