"""From the body of `/admin/interpret` to the specification of a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError
from steerserve.core.files import expand_home
from steerserve.interpret.options import InterpretedSource, InterpretOptions
from steerserve.jobs.admission import check_corpus
from steerserve.jobs.job import JobSpec
from steerserve.jobs.needs import check_needs, interpretation_needs
from steerserve.model.source import absolute_source
from steerserve.requests.training import check_context_size

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.jobs.job import Job
    from steerserve.jobs.supervisor import Supervisor
    from steerserve.requests.served import ServedModel
    from steerserve.wire.jobs import InterpretRequest


def start_interpretation(body: InterpretRequest, served: ServedModel, jobs: Supervisor) -> Job:
    """Check a request and queue its job. Reads the disk: not for the event loop.

    Raises:
        SteerserveError: the request cannot be honoured.
    """
    with jobs.admission:
        spec = interpretation_spec(body, served, promised_bytes=jobs.promised_bytes())
        return jobs.submit("interpret", spec.claims[0], spec)


def interpretation_spec(body: InterpretRequest, served: ServedModel, *, promised_bytes: int) -> JobSpec:
    """Check a request and return the specification of its job. Reads the disk: not for the event loop.

    Raises:
        InvalidRequestError: the request cannot be honoured.
        ModelNotFoundError: the request names another model.
    """
    served.check_plain_model(body.model)
    check_context_size(body, served)
    settings = served.settings
    dictionaries = _dictionaries(body, served)
    folders = tuple(folder.resolve() for folder in settings.dictionary_dirs)
    options = InterpretOptions(
        # A loaded dictionary has been checked: its warnings were accepted when it was loaded.
        dictionaries=tuple(
            InterpretedSource(dictionary.id, _absolute(dictionary.source), dictionary.sha256, force=True)
            for dictionary in dictionaries
        ),
        corpus=check_corpus(body.corpus, settings.corpus_dirs),
        corpus_dirs=tuple(folder.resolve() for folder in settings.corpus_dirs),
        dictionary_dirs=folders,
        allowed_dirs=tuple(folder.resolve() for folder in settings.allowed_dictionary_dirs),
        max_dictionary_bytes=settings.max_dictionary_bytes,
        model=absolute_source(settings.model.source),
        trust_remote_code=settings.model.trust_remote_code,
        tokens=body.tokens,
        context_size=body.context_size,
        seed=body.seed,
        device=settings.model.device,
        dtype=settings.model.dtype,
        backend=settings.model.backend,
        process_weights=settings.model.process_weights,
        calibrate=body.calibrate,
    )
    needs = interpretation_needs(
        [(dictionary.d_in, dictionary.d_sae) for dictionary in dictionaries],
        served.lens.weight_bytes if served.lens.device.type == "cpu" else 0,
        options.corpus,
        body.tokens,
    )
    check_needs("interpret", needs, folders[0], promised_bytes=promised_bytes)
    return JobSpec(
        claims=tuple(dictionary.id for dictionary in dictionaries),
        options=options.to_json(),
        cache_dir=settings.cache_dir.absolute(),
        threads=settings.jobs.threads,
        disk_bytes=needs.disk,
    )


def _absolute(source: str) -> str:
    """Return the source with an absolute path, so that it holds in any working directory."""
    return f"path:{expand_home(Path(source.removeprefix('path:'))).resolve()}" if source.startswith("path:") else source


def _dictionaries(body: InterpretRequest, served: ServedModel) -> list[Dictionary]:
    """Return the requested dictionaries, each of them once."""
    snapshot = served.registry.snapshot()
    if body.dictionaries is None:
        return [snapshot.find(body.dictionary, "dictionary")]
    if body.dictionary is not None:
        message = "Send either 'dictionary' or 'dictionaries', not both."
        raise InvalidRequestError(message, param="dictionaries")
    named = dict.fromkeys(body.dictionaries)
    return [snapshot.find(name, f"dictionaries[{body.dictionaries.index(name)}]") for name in named]
