"""From the body of `/admin/interpret` to the spec of a job: every refusal happens here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerserve.core.config import expand_home
from steerserve.core.errors import InvalidRequestError
from steerserve.interpret.options import InterpretedSource, InterpretOptions
from steerserve.jobs.admission import check_corpus, check_interpretation_room
from steerserve.model.source import absolute_source
from steerserve.requests.generation import check_plain_model

if TYPE_CHECKING:
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.requests.served import ServedModel
    from steerserve.wire.jobs import InterpretRequest


def interpretation_spec(body: InterpretRequest, served: ServedModel, *, promised_bytes: int) -> dict[str, Any]:
    """Check a request and return the spec of its job. Looks at the disk: not for the event loop.

    Raises:
        InvalidRequestError: it cannot be honoured.
        ModelNotFoundError: it names another model.
    """
    check_plain_model(served, body.model)
    if body.context_size > served.lens.max_context:
        message = f"The model reads at most {served.lens.max_context} tokens; context_size is {body.context_size}."
        raise InvalidRequestError(message, param="context_size")
    settings = served.settings
    dictionaries = _dictionaries(body, served)
    corpus = (
        {"corpus": body.corpus}
        if isinstance(body.corpus, str)
        else {f"corpus[{place}]": entry for place, entry in enumerate(body.corpus)}
    )
    folders = tuple(folder.resolve() for folder in settings.dictionary_dirs)
    options = InterpretOptions(
        # A dictionary that is served has been checked, and whoever loaded it knows what speaks against it.
        dictionaries=tuple(
            InterpretedSource(one.id, _absolute(one.source), one.sha256, force=True) for one in dictionaries
        ),
        corpus=tuple(check_corpus(entry, settings.corpus_dirs, param) for param, entry in corpus.items()),
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
    disk_bytes = check_interpretation_room(
        [(one.d_in, one.d_sae) for one in dictionaries],
        served.lens.weight_bytes if served.lens.device.type == "cpu" else 0,
        options.corpus,
        body.tokens,
        folders[0],
        promised_bytes=promised_bytes,
    )
    return {
        "claims": [one.id for one in dictionaries],
        "threads": settings.jobs.threads,
        "cache_dir": str(settings.cache_dir.absolute()),
        "load": False,
        "disk_bytes": disk_bytes,
        "options": options.to_json(),
    }


def _absolute(source: str) -> str:
    """Return the source as it is found from any working directory."""
    return f"path:{expand_home(Path(source.removeprefix('path:'))).resolve()}" if source.startswith("path:") else source


def _dictionaries(body: InterpretRequest, served: ServedModel) -> list[Dictionary]:
    """Return the dictionaries that are asked for, each once."""
    snapshot = served.registry.snapshot()
    if body.dictionaries is None:
        return [snapshot.find(body.dictionary, "dictionary")]
    if body.dictionary is not None:
        message = "Name either one 'dictionary' or several 'dictionaries', not both."
        raise InvalidRequestError(message, param="dictionaries")
    named = dict.fromkeys(body.dictionaries)
    return [snapshot.find(name, f"dictionaries[{body.dictionaries.index(name)}]") for name in named]
