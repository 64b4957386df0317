"""The commands `steerserve features ...`. Nothing heavy is imported before one runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from steerserve.commands.feature_files import export_command, import_command
from steerserve.commands.feature_store import DictionarySource, find_dictionary
from steerserve.commands.labelling import label_with_command
from steerserve.commands.shared import print_table
from steerserve.core.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.store.records import Calibration, Label, TextSnippet
    from steerserve.store.search import Sort
    from steerserve.store.store import FeatureStore

_SORTS: tuple[Sort, ...] = ("relevance", "steerability", "density", "max", "feature")
_REACH = 10
"""Tokens on each side of the peak of a snippet in lists."""
_NUM_SNIPPETS = 5
_NUM_TOKENS = 10
_NAME_WIDTH = 13

FeatureIndex = Annotated[int, typer.Argument(metavar="FEATURE", help="The feature's index.", show_default=False)]

features_app = typer.Typer(
    help="Search, show and label the features of a dictionary that was interpreted.", no_args_is_help=True
)
features_app.command("export")(export_command)
features_app.command("import")(import_command)
features_app.command("label-with")(label_with_command)


@features_app.command("search")
def features_search(
    source: DictionarySource,
    words: Annotated[
        list[str] | None, typer.Argument(help="Words to search for; all features if not given.", show_default=False)
    ] = None,
    sort: Annotated[str, typer.Option(help=f"One of {', '.join(_SORTS)}.")] = "relevance",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of features.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Number of features to skip.")] = 0,
) -> None:
    """Search features by label, promoted tokens and snippets, the best match first."""
    order = next((name for name in _SORTS if name == sort), None)
    if order is None:
        message = f"sort is {sort!r}; it must be one of {', '.join(_SORTS)}."
        raise ConfigError(message, param="sort")
    try:
        hits, _ = find_dictionary(source).store().search(" ".join(words or ()), order, limit, offset)
    except InvalidRequestError as error:
        raise ConfigError(error.message) from error
    table = Table("feature", "label", "density", "max", "dose", "writes", "strongest snippet", box=None)
    for hit in hits:
        snippet = _snippet_line(hit.snippet, hit.token_bytes) if hit.snippet is not None else ""
        table.add_row(
            str(hit.feature),
            escape(hit.label.text) if hit.label is not None else "",
            f"{hit.density:.3%}" if hit.density is not None else "",
            f"{hit.maximum:.3g}" if hit.maximum is not None else "",
            *_dose_and_writes(hit.calibration),
            escape(snippet),
        )
    print_table(table)


@features_app.command("show")
def features_show(
    source: DictionarySource,
    feature: FeatureIndex,
    *,
    history: Annotated[
        bool, typer.Option("--history", help="Print every label that it ever had, the newest first, and nothing else.")
    ] = False,
) -> None:
    """Show a feature: labels, activity, tokens, snippets with the peak in brackets, neighbours."""
    from steerserve.store.stored import token_texts

    store = find_dictionary(source).store()
    if history:
        _show_history(store, feature)
        return
    stored = store.feature(feature)
    if stored is None:
        message = (
            f"Nothing is stored about feature {feature} of {source}, which has features 0 to {store.meta().d_sae - 1}."
        )
        raise ConfigError(message, param="feature")
    for label in stored.labels:
        _print_value("label", f"{label.text} ({_made_by(label)})")
    if (calibration := stored.calibration) is not None:
        score = f"output score {calibration.output_score:.3g} ({calibration.role})"
        _print_value("dose", f"{calibration.dose:.3g}, {score}")
    if (record := stored.record) is None:
        return
    activity = record.activity
    _print_value("density", f"{activity.density:.4%} of {activity.num_tokens:,} tokens")
    _print_value("activation", f"at most {activity.maximum:.4g}, mean {activity.mean:.4g}")
    for name, tokens in (
        ("fires on", record.peak_tokens),
        ("promotes", record.promoted),
        ("suppresses", record.suppressed),
    ):
        texts = (repr("".join(token_texts([token_id], stored.token_bytes))) for token_id, _ in tokens[:_NUM_TOKENS])
        _print_value(name, " ".join(texts))
    labels = store.labels(neighbour for neighbour, _ in record.neighbours)
    for neighbour, cosine in record.neighbours:
        _print_value("near", f"{neighbour} ({cosine:.2f}) {labels.get(neighbour, '')}".rstrip())
    for snippet in record.snippets[:_NUM_SNIPPETS]:
        line = _snippet_line(snippet, stored.token_bytes, reach=len(snippet.token_ids))
        _print_value(f"{max(snippet.acts):.3g}", line)


@features_app.command("label")
def features_label(
    source: DictionarySource,
    feature: FeatureIndex,
    text: Annotated[
        str | None, typer.Argument(help="A few words; without them your label is removed.", show_default=False)
    ] = None,
) -> None:
    """Give a feature a label, which wins over all others, or remove it."""
    from steerserve.store.records import Label

    label = Label(_label_text(text), "person") if text is not None else None
    dictionary = find_dictionary(source)
    dictionary.check_feature(feature)
    store = dictionary.writable_store()
    store.set_label(feature, label)
    typer.echo(f"{feature}: {store.labels([feature]).get(feature, 'no label')}")


def _label_text(text: str) -> str:
    """Return a person's words as a label stores them."""
    from steerserve.core.label_text import MAX_LABEL_CHARS, clean_label

    words = clean_label(text, len(text))
    if not words:
        message = "A label needs visible words. Leave the text out to remove your label."
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
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(label.created))
        _print_value(created, f"{label.text} ({_made_by(label)})")


def _dose_and_writes(calibration: Calibration | None) -> tuple[str, str]:
    return ("", "") if calibration is None else (f"{calibration.dose:.3g}", "yes" if calibration.writes else "")


def _made_by(label: Label) -> str:
    score = f", {label.score:.2f}" if label.score is not None else ""
    return f"{label.origin}{f' {label.author}' if label.author else ''}{score}"


def _snippet_line(snippet: TextSnippet, token_bytes: Mapping[int, bytes], reach: int = _REACH) -> str:
    """Return a snippet on one line, its peak in brackets."""
    from steerserve.store.stored import token_texts

    texts, peak = token_texts(snippet.token_ids, token_bytes), snippet.peak
    before, after = "".join(texts[max(0, peak - reach) : peak]), "".join(texts[peak + 1 : peak + 1 + reach])
    return "".join(char if char.isprintable() else " " for char in f"{before}[{texts[peak]}]{after}")


def _print_value(name: str, value: str) -> None:
    typer.echo(f"{name:{_NAME_WIDTH}} {value}")
