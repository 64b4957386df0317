"""The commands `steerserve dictionaries ...`. Nothing heavy is imported before one runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import steerserve
from steerserve.commands.shared import environment_settings, print_table, read_config
from steerserve.commands.terminal import followed_run
from steerserve.core.config import DEFAULT_MODEL
from steerserve.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.dictionaries.layouts import StoredDictionary

_BUNDLED = Path(steerserve.__file__).parent / "dictionaries" / "bundled"
_MAX_NAME_CHARS = 64
_FIGURES = ("ce_recovered", "explained_variance", "l0", "dead_fraction", "dense_fraction")
_LABEL_WIDTH = 20

Source = Annotated[
    str,
    typer.Argument(
        help="bundled:MODEL/NAME, path:FOLDER, hf:REPOSITORY/FOLDER or sae_lens:RELEASE/SAE_ID.", show_default=False
    ),
]

dictionaries_app = typer.Typer(help="List, fetch, show and check dictionaries.", no_args_is_help=True)


@dictionaries_app.command("list")
def dictionaries_list() -> None:
    """List the bundled dictionaries, and those in the configured folders."""
    table = Table("source", "architecture", "features", "hook point", box=None)
    roots = [("bundled", _BUNDLED), *(("path", folder) for folder in environment_settings().dictionary_dirs)]
    for kind, root in roots:
        for file in sorted(root.rglob("cfg.json")):
            inside = file.parent.relative_to(root)
            # Skip the checkpoints of an unfinished training, and the server's own folders.
            if any(part == "run" or part.startswith(".") for part in inside.parts):
                continue
            table.add_row(f"{kind}:{inside if kind == 'bundled' else file.parent}", *_row(file))
    print_table(table)


def _row(file: Path) -> tuple[str, str, str]:
    """Return architecture, number of features and hook point; question marks if they cannot be read."""
    try:
        config = read_config(file)
    except ConfigError:
        return "cfg.json cannot be read", "?", "?"
    metadata = config.get("metadata")
    hook_source = metadata if isinstance(metadata, dict) and metadata.get("hook_name") else config
    architecture, d_sae = (escape(str(config.get(name, "?"))) for name in ("architecture", "d_sae"))
    return architecture, d_sae, escape(_hook_of(hook_source))


def _hook_of(metadata: Mapping[str, Any]) -> str:
    """Return the hook point of a dictionary; for a transcoder, the one that it reads and the one that it writes."""
    hooks = (metadata.get("hook_name"), metadata.get("hook_name_out"))
    return " -> ".join(str(hook) for hook in hooks if hook) or "?"


@dictionaries_app.command("pull")
def dictionaries_pull(
    source: Source,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; by default one in the first of dictionary_dirs.", show_default=False),
    ] = None,
) -> None:
    """Fetch a dictionary and write it as a folder in SAELens' layout, with its source in the metadata."""
    from steerserve.core.progress import progress_line
    from steerserve.dictionaries.export import write_folder

    target = out if out is not None else environment_settings().dictionary_dirs[0] / _name_of(source)
    if target.exists():
        raise _exists(target)
    stored = _read(source)
    metadata = _metadata(stored)
    try:
        with progress_line(f"Checking {source} and writing {target}"):
            write_folder(stored, target)
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror}."
        raise ConfigError(message, param="out") from error
    made_for = str(metadata.get("model_name") or "")
    model = "" if made_for in {"", DEFAULT_MODEL} else f"--model {shlex.quote(made_for)} "
    typer.echo(f"{target}: {stored.config.get('d_sae')} features at {_hook_of(metadata)}")
    serving = f"{_name_of(target.name)}={shlex.quote(f'path:{target}')}"
    typer.echo(f"Serve it with: steerserve serve {model}--dictionary {serving}")


@dictionaries_app.command("show")
def dictionaries_show(source: Source) -> None:
    """Show a dictionary: hook point, architecture, sizes, sha256, the model it was made for, and its report."""
    stored = _read(source)
    metadata, report = _metadata(stored), stored.report or {}
    shown = {
        "source": source,
        "hook point": _hook_of(metadata),
        "architecture": stored.config.get("architecture", "?"),
        "d_in": stored.config.get("d_in", "?"),
        **({"d_out": stored.config["d_out"]} if "d_out" in stored.config else {}),
        "features": stored.config.get("d_sae", "?"),
        "stored as": str(stored.tensors["W_dec"].dtype).removeprefix("torch.") if "W_dec" in stored.tensors else "?",
        "sha256": stored.sha256,
        "made for": metadata.get("model_name") or "?",
        **{name: report[name] for name in _FIGURES if name in report},
    }
    for label, value in shown.items():
        typer.echo(
            f"{label:{_LABEL_WIDTH}}{value:.4g}" if isinstance(value, float) else f"{label:{_LABEL_WIDTH}}{value}"
        )


@dictionaries_app.command("check")
def dictionaries_check(
    source: Source,
    model: Annotated[
        str | None, typer.Option(help="The model to check it against, as for serve.", show_default=False)
    ] = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Accept a dictionary that was made for a model of another name.")
    ] = False,
) -> None:
    """Check a dictionary as the server does before it loads one; an error is one line and exit code 2."""
    import torch

    from steerserve.dictionaries.model_fit import check_model_fit
    from steerserve.dictionaries.saelens import build_sae

    sae = build_sae(_read(source), torch.device("cpu"))
    if model is None:
        typer.echo(f"{source} is sound. (Give --model to check it against a model.)")
        return
    from steerserve.model.lens import load_lens
    from steerserve.model.names import model_names
    from steerserve.model.source import fetch_model

    files = fetch_model(model, cache_dir=environment_settings().cache_dir)
    fit = check_model_fit(sae, source, load_lens(files), model_names(files), force=force)
    typer.echo(f"{source} is sound and fits {files.id} at {fit.hook_name}.")
    for doubt in fit.doubts:
        typer.echo(f"But it {doubt}.")


@dictionaries_app.command("judge")
def dictionaries_judge(
    source: Source,
    corpus: Annotated[
        list[str],
        typer.Option(
            "--corpus", help="Text: a folder, a .txt, .md or .jsonl file, or sample (the sample corpus). Repeatable."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json and report.html.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="The model whose activations it reads, as for serve.")] = DEFAULT_MODEL,
    context_size: Annotated[int, typer.Option(help="Tokens of a context window.", min=16)] = 128,
    heldout_tokens: Annotated[int, typer.Option(help="Tokens for measuring reconstructions.", min=1)] = 16_384,
    feature_tokens: Annotated[int, typer.Option(help="Tokens for counting active features.", min=1)] = 200_000,
) -> None:
    """Measure how well a dictionary reconstructs the model on a text, as the report of a training does."""
    from steerserve.dictionaries.loader import DictionaryLoader
    from steerserve.model.lens import load_lens
    from steerserve.model.names import model_names
    from steerserve.model.norms import measure_norms
    from steerserve.model.source import fetch_model
    from steerserve.text.corpus import load_corpus
    from steerserve.text.sample import SAMPLE, fetch_sample
    from steerserve.training.judge import judge
    from steerserve.training.report import save_report

    text = load_corpus([fetch_sample() if entry == SAMPLE else entry for entry in corpus])
    settings = environment_settings()
    files = fetch_model(model, cache_dir=settings.cache_dir)
    lens = load_lens(files)
    loader = DictionaryLoader(
        lens, model_names(files), measure_norms(lens), _readable_dirs(source), settings.max_dictionary_bytes
    )
    dictionary = loader.load(_name_of(source), source)
    with followed_run() as observer:
        report = judge(
            lens,
            dictionary,
            text,
            context_size=context_size,
            heldout_tokens=heldout_tokens,
            feature_tokens=feature_tokens,
            observer=observer,
        )
    for name in _FIGURES:
        typer.echo(f"{name:{_LABEL_WIDTH}}{report[name]:.4g}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        save_report(report, out)
        typer.echo(f"The whole report: {out}/report.html")


def _read(source: str) -> StoredDictionary:
    from steerserve.dictionaries.layouts import StoredDictionary
    from steerserve.dictionaries.saelens import read_config
    from steerserve.dictionaries.sources import read_source
    from steerserve.dictionaries.weights import SizeLimit

    limit = SizeLimit(environment_settings().max_dictionary_bytes)
    stored = read_source(source, _readable_dirs(source), limit)
    config = read_config(stored.config, source)
    return StoredDictionary(source, config, stored.tensors, stored.sha256, stored.report, stored.saelens_folder)


def _readable_dirs(source: str) -> tuple[Path, ...]:
    """Return the folders that a source may lie in, its own included: whoever runs a command can read it."""
    kind, _, name = source.partition(":")
    return (*environment_settings().dictionary_dirs, *((Path(name),) if kind == "path" else ()))


def _metadata(stored: StoredDictionary) -> Mapping[str, object]:
    metadata: Mapping[str, object] = stored.config["metadata"]
    return metadata


def _name_of(source: str) -> str:
    """Return a name that can be a dictionary's id: the source without its kind and the hub's organisation."""
    kind, colon, name = source.partition(":")
    parts = (name if colon else source).strip("/").split("/")
    kept = parts[1:] if kind == "hf" else parts if kind == "sae_lens" else parts[-1:]
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(kept)).lstrip("._-")[-_MAX_NAME_CHARS:].lstrip("._-") or "dictionary"
    )


def _exists(target: Path) -> ConfigError:
    message = f"{target} exists already. Remove it, or give another folder with --out."
    return ConfigError(message, param="out")
