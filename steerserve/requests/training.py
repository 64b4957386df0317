"""From the body of `/admin/train` to the specification of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError, InvalidRequestError
from steerserve.jobs.admission import check_corpus, check_folder
from steerserve.jobs.job import JobSpec
from steerserve.jobs.needs import ModelSize, check_needs, check_trained_size, training_needs
from steerserve.model.source import absolute_source
from steerserve.training.options import DEFAULT_HOOK, DEFAULT_L1, DEFAULT_RESAMPLE, Grid, TrainOptions

if TYPE_CHECKING:
    from steerserve.jobs.job import Job
    from steerserve.jobs.supervisor import Supervisor
    from steerserve.requests.served import ServedModel
    from steerserve.wire.jobs import InterpretRequest, TrainRequest

_MAX_DICTIONARIES = 64
_DEFAULT_K = 32
_DEPTH = 0.57
"""Relative depth of the default model's hook point, which is used for a model that does not have this hook point."""


def start_training(body: TrainRequest, served: ServedModel, jobs: Supervisor) -> Job:
    """Check a request and queue its job. Reads the disk: not for the event loop.

    Raises:
        SteerserveError: the request cannot be honoured.
    """
    with jobs.admission:
        return jobs.submit("train", body.id, training_spec(body, served, promised_bytes=jobs.promised_bytes()))


def training_spec(body: TrainRequest, served: ServedModel, *, promised_bytes: int) -> JobSpec:
    """Check a request and return the specification of its job. Reads the disk: not for the event loop.

    Raises:
        InvalidRequestError: the request cannot be honoured.
        ModelNotFoundError: the request names another model.
    """
    served.check_plain_model(body.model)
    settings = served.settings
    options = _options(body, served)
    check_folder(options)
    lens = served.lens
    widths = {hook: lens.width(hook) for hook in options.hooks}
    needs = training_needs(options, ModelSize(lens.weight_bytes, lens.vocab_size, widths, lens.device.type == "cpu"))
    check_trained_size(options, widths, settings.max_dictionary_bytes)
    check_needs("train", needs, options.out, promised_bytes=promised_bytes, device_free=lens.free_bytes())
    return JobSpec(
        claims=tuple(sorted({body.id, *(dictionary.id for dictionary in options.dictionaries)})),
        options=options.to_json(),
        cache_dir=settings.cache_dir.absolute(),
        threads=settings.jobs.threads,
        load=body.load,
        disk_bytes=needs.disk,
    )


def _options(body: TrainRequest, served: ServedModel) -> TrainOptions:
    settings = served.settings
    widths = _widths(body)
    hooks = _hooks(body, served)
    check_context_size(body, served)
    if len(set(hooks)) * len(set(widths)) > _MAX_DICTIONARIES:
        message = (
            f"{len(set(hooks))} hook points with {len(set(widths))} widths each are more than the {_MAX_DICTIONARIES} "
            "dictionaries that one job may train. Send several requests."
        )
        raise InvalidRequestError(message, param="hook")
    try:
        return TrainOptions(
            out=settings.dictionary_dirs[0].resolve() / body.id,
            corpus=check_corpus(body.corpus, settings.corpus_dirs),
            corpus_dirs=tuple(folder.resolve() for folder in settings.corpus_dirs),
            dictionaries=Grid(body.id, hooks, widths, _shared(body)).dictionaries(),
            model=absolute_source(settings.model.source),
            model_dtype=settings.model.dtype,
            backend=settings.model.backend,
            process_weights=settings.model.process_weights,
            trust_remote_code=settings.model.trust_remote_code,
            tokens=body.tokens,
            epochs=body.epochs,
            batch_size=body.batch_size,
            seed=body.seed,
            context_size=body.context_size,
            device=settings.model.device,
            storage=body.storage,
        )
    except ConfigError as error:
        raise InvalidRequestError(error.message, param=error.param) from error


def check_context_size(body: TrainRequest | InterpretRequest, served: ServedModel) -> None:
    """Check that the model can read context windows of the requested size.

    Raises:
        InvalidRequestError: the windows are too long.
    """
    if body.context_size > served.lens.max_context:
        message = f"The model reads at most {served.lens.max_context} tokens, but context_size is {body.context_size}."
        raise InvalidRequestError(message, param="context_size")


def _hooks(body: TrainRequest, served: ServedModel) -> list[str]:
    """Return the requested hook points, all of which the model has."""
    if body.hook is None:
        layer = int(_DEPTH * served.lens.num_layers)
        return [DEFAULT_HOOK if DEFAULT_HOOK in served.lens.hook_names else f"blocks.{layer}.hook_resid_post"]
    hooks = [body.hook] if isinstance(body.hook, str) else body.hook
    for index, hook in enumerate(hooks):
        served.check_hook(hook, "hook" if isinstance(body.hook, str) else f"hook[{index}]")
    return hooks


def _shared(body: TrainRequest) -> dict[str, Any]:
    """Return the options that all dictionaries of the request share."""
    has_penalty = body.architecture in DEFAULT_L1
    for name, value, is_read in (("k", body.k, not has_penalty), ("l1_coefficient", body.l1_coefficient, has_penalty)):
        if value is not None and not is_read:
            other = "l1_coefficient" if has_penalty else "k"
            message = f"The architecture {body.architecture!r} does not use '{name}'. Its sparsity is set by '{other}'."
            raise InvalidRequestError(message, param=name)
    return {
        "architecture": body.architecture,
        "k": body.k if body.k is not None else min(_DEFAULT_K, *_widths(body)),
        "l1_coefficient": body.l1_coefficient,
        "lr": body.lr,
        "resample": _resample(body),
        "dtype": body.dtype,
    }


def _widths(body: TrainRequest) -> list[int]:
    return [body.d_sae] if isinstance(body.d_sae, int) else body.d_sae


def _resample(body: TrainRequest) -> tuple[float, ...] | None:
    if isinstance(body.resample, bool):
        return DEFAULT_RESAMPLE if body.resample else ()
    return None if body.resample is None else tuple(body.resample)
