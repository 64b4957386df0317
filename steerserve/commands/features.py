"""The commands `steerserve features ...`. Nothing heavy is imported before one runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from steerserve.commands.labelling import label_with_command
from steerserve.commands.shared import environment_settings, print_table
from steerserve.core.config import expand_home
from steerserve.core.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.store.location import StoreLocation
    from steerserve.store.records import Calibration, Label, TextSnippet
    from steerserve.store.search import Sort
    from steerserve.store.store import FeatureStore
    from steerserve.store.stored import StoreMeta

_SORTS: tuple[Sort, ...] = ("relevance", "steerability", "density", "max", "feature")
_SNIPPET_TOKENS = 10
"""On each side of the peak, in lists."""
_NUM_SNIPPETS = 5
_LABEL_WIDTH = 14

Source = Annotated[
    str,
    typer.Argument(
        help="The dictionary: bundled:MODEL/NAME, path:FOLDER, hf:REPOSITORY/FOLDER or sae_lens:RELEASE/SAE_ID.",
        show_default=False,
    ),
]
Feature = Annotated[int, typer.Argument(help="The feature's index.", show_default=False)]

features_app = typer.Typer(
    help="Search, show and label the features of a dictionary that was interpreted.", no_args_is_help=True
)


@features_app.command("search")
def features_search(
    source: Source,
    words: Annotated[
        list[str] | None, typer.Argument(help="What to search for; all features if not given.", show_default=False)
    ] = None,
    sort: Annotated[str, typer.Option(help=f"One of {', '.join(_SORTS)}.")] = "relevance",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Pass over so many.")] = 0,
) -> None:
    """Search features by label, promoted tokens and snippets, the best match first."""
    order = next((known for known in _SORTS if known == sort), None)
    if order is None:
        message = f"sort is {sort!r}; it must be one of {', '.join(_SORTS)}."
        raise ConfigError(message, param="sort")
    try:
        found, _ = _store(source).search(" ".join(words or ()), order, limit, offset)
    except InvalidRequestError as error:
        raise ConfigError(error.message) from error
    table = Table("feature", "label", "density", "max", "dose", "writes", "strongest snippet", box=None)
    for row in found:
        snippet = _snippet(row.snippet, row.token_bytes) if row.snippet is not None else ""
        table.add_row(
            str(row.feature),
            escape(row.label.text) if row.label is not None else "",
            f"{row.density:.3%}" if row.density is not None else "",
            f"{row.maximum:.3g}" if row.maximum is not None else "",
            *_dosed(row.calibration),
            escape(snippet),
        )
    print_table(table)


@features_app.command("show")
def features_show(
    source: Source,
    feature: Feature,
    *,
    history: Annotated[
        bool, typer.Option("--history", help="Every label that it ever had, the newest first, and nothing else.")
    ] = False,
) -> None:
    """Show what is known of a feature: labels, activity, tokens, snippets with the peak in brackets, neighbours."""
    from steerserve.store.stored import token_texts

    store = _store(source)
    if history:
        _show_history(store, feature)
        return
    found = store.feature(feature)
    if found is None:
        message = (
            f"Nothing is known of feature {feature} of {source}, which has features 0 to {store.meta().d_sae - 1}."
        )
        raise ConfigError(message, param="feature")
    for label in found.labels:
        _line("label", f"{label.text} ({_made_by(label)})")
    dose, writes = _dosed(found.calibration)
    if found.calibration is not None:
        _line("dose", f"{dose}, output score {found.calibration.output_score:.3g} ({'writes' if writes else 'reads'})")
    if (harvested := found.record) is None:
        return
    activity = harvested.activity
    _line("density", f"{activity.density:.4%} of {activity.num_tokens:,} tokens")
    _line("activation", f"at most {activity.maximum:.4g}, mean {activity.mean:.4g}")
    for name, tokens in (
        ("fires on", harvested.peak_tokens),
        ("promotes", harvested.promoted),
        ("suppresses", harvested.suppressed),
    ):
        texts = (repr("".join(token_texts([token_id], found.token_bytes))) for token_id, _ in tokens[:10])
        _line(name, " ".join(texts))
    near = store.labels(neighbour for neighbour, _ in harvested.neighbours)
    for neighbour, cosine in harvested.neighbours:
        _line("near", f"{neighbour} ({cosine:.2f}) {near.get(neighbour, '')}".rstrip())
    for snippet in harvested.snippets[:_NUM_SNIPPETS]:
        _line(f"{max(snippet.acts):.3g}", _snippet(snippet, found.token_bytes, reach=len(snippet.token_ids)))


@features_app.command("label")
def features_label(
    source: Source,
    feature: Feature,
    text: Annotated[
        str | None, typer.Argument(help="A few words; without them your label is taken away.", show_default=False)
    ] = None,
) -> None:
    """Give a feature a label, which wins over all others, or take it away."""
    from steerserve.store.records import Label

    label = Label(_label_words(text), "person") if text is not None else None
    place = _locate(source)
    _check(place, feature)
    store = place.writable()
    store.set_label(feature, label)
    shown = store.labels([feature]).get(feature)
    typer.echo(f"{feature}: {shown if shown is not None else 'no label'}")


@features_app.command("export")
def features_export(
    source: Source,
    out: Annotated[
        Path | None, typer.Option(help="File to write; standard output if not given.", show_default=False)
    ] = None,
    whole: Annotated[
        Path | None,
        typer.Option("--store", help="Copy the whole store to this file instead, as it is now.", show_default=False),
    ] = None,
) -> None:
    """Write all that is known as JSON Lines, one object a feature, or copy the whole store."""
    from steerserve.store.export import export_lines
    from steerserve.store.placement import copy_store

    store = _store(source)
    if whole is not None:
        if out is not None:
            message = "Lines (--out) and the whole store (--store) are two exports; give one of them."
            raise ConfigError(message, param="store")
        try:
            copy_store(store.path, whole)
        except FileExistsError as error:
            message = f"{whole} is there already."
            raise ConfigError(message, param="store") from error
        return
    if out is None:
        for line in export_lines(store):
            typer.echo(line)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in export_lines(store))
    except OSError as error:
        message = f"{out} cannot be written: {error.strerror}."
        raise ConfigError(message, param="out") from error


@features_app.command("import")
def features_import(
    source: Source,
    file: Annotated[
        Path, typer.Argument(help="What was exported, lines or a whole store, or Neuronpedia's.", show_default=False)
    ],
    *,
    neuronpedia: Annotated[
        bool, typer.Option("--neuronpedia", help="The file holds Neuronpedia's explanations.")
    ] = False,
) -> None:
    """Take a whole store, or labels: exported lines, lines as {"feature": 7, "label": "bridges"}, or Neuronpedia's.

    A label takes the place of an older one of the same origin, never of a newer one. All are taken, or none.
    """
    from steerserve.store.export import is_store, read_labels
    from steerserve.store.neuronpedia import read_neuronpedia

    place = _locate(source)
    if not neuronpedia and is_store(file):
        path = place.location.import_store(file)
        typer.echo(f"{path}: taken from {file}, with the labels that were here")
        return
    labels: Mapping[int, Sequence[Label]]
    if neuronpedia:
        labels = {feature: [label] for feature, label in read_neuronpedia(file, place.d_sae).items()}
    else:
        labels = read_labels(file, place.d_sae)
    store = place.writable()
    num_taken = store.take_newer_labels(labels)
    typer.echo(f"{store.path}: labels of {num_taken} features taken from {file}")
    if num_taken < len(labels):
        typer.echo(f"The other {len(labels) - num_taken} have labels that are as new, or newer.")


def labelling_store(source: str) -> Path:
    """Return the file of a dictionary's store that labels can be written to.

    Raises:
        ConfigError: the dictionary was not interpreted.
    """
    _store(source)
    return _locate(source).writable().path


features_app.command("label-with")(label_with_command)


@dataclass(frozen=True, slots=True)
class _Place:
    source: str
    location: StoreLocation
    d_sae: int

    @property
    def meta(self) -> StoreMeta:
        """Of a store that is made here: which model reads with the weights, nobody has said."""
        from steerserve.store.stored import StoreMeta

        return StoreMeta(self.location.subject.sha256, self.d_sae, "", created=time.time())

    def writable(self) -> FeatureStore:
        return self.location.store(self.meta)


def _locate(source: str) -> _Place:
    from steerserve.dictionaries.saelens import read_config
    from steerserve.dictionaries.sources import read_source
    from steerserve.dictionaries.weights import SizeLimit
    from steerserve.store.location import locate_store
    from steerserve.store.stored import Subject

    settings = environment_settings()
    kind, _, name = source.partition(":")
    # Who types a folder can read it.
    allowed = [*settings.dictionary_dirs, *([expand_home(Path(name))] if kind == "path" else [])]
    stored = read_source(source, allowed, SizeLimit(settings.max_dictionary_bytes))
    config = read_config(stored.config, source)
    location = locate_store(source, Subject(stored.sha256), settings.dictionary_dirs, allowed)
    return _Place(source, location, int(config["d_sae"]))


def _store(source: str) -> FeatureStore:
    store = _locate(source).location.find()
    if store is None:
        message = f"Nothing is known of the features of {source} yet: `steerserve interpret` reads text and finds out."
        raise ConfigError(message, param="source")
    return store


def _check(place: _Place, feature: int) -> None:
    if not 0 <= feature < place.d_sae:
        message = f"{place.source} has features 0 to {place.d_sae - 1}, and not {feature}."
        raise ConfigError(message, param="feature")


def _label_words(text: str) -> str:
    """Return what a person wrote as a label holds it."""
    from steerserve.core.label_text import MAX_LABEL_CHARS, clean_label

    words = clean_label(text, len(text))
    if not words:
        message = "A label needs words that can be seen; leave it out to take yours away."
        raise ConfigError(message, param="text")
    if len(words) > MAX_LABEL_CHARS:
        message = f"The label has {len(words)} characters; it may have {MAX_LABEL_CHARS}."
        raise ConfigError(message, param="text")
    return words


def _show_history(store: FeatureStore, feature: int) -> None:
    labels = store.label_history(feature)
    if not labels:
        message = f"Feature {feature} never had a label."
        raise ConfigError(message, param="feature")
    for label in labels:
        _line(time.strftime("%Y-%m-%d %H:%M", time.localtime(label.created)), f"{label.text} ({_made_by(label)})")


def _dosed(calibration: Calibration | None) -> tuple[str, str]:
    return ("", "") if calibration is None else (f"{calibration.dose:.3g}", "yes" if calibration.writes else "")


def _made_by(label: Label) -> str:
    score = f", {label.score:.2f}" if label.score is not None else ""
    return f"{label.origin}{f' {label.author}' if label.author else ''}{score}"


def _snippet(snippet: TextSnippet, token_bytes: Mapping[int, bytes], reach: int = _SNIPPET_TOKENS) -> str:
    """Write a snippet on one line, its peak in brackets."""
    from steerserve.store.stored import token_texts

    texts = token_texts(snippet.token_ids, token_bytes)
    before, after = (
        texts[max(0, snippet.peak - reach) : snippet.peak],
        texts[snippet.peak + 1 : snippet.peak + 1 + reach],
    )
    whole = f"{''.join(before)}[{texts[snippet.peak]}]{''.join(after)}"
    return "".join(char if char.isprintable() else " " for char in whole)


def _line(name: str, value: str) -> None:
    typer.echo(f"{name:{_LABEL_WIDTH - 1}} {value}")
