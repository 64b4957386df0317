"""Pages of the docs site that are made from the code: HTTP routes, the command line, and CONTRIBUTING.

A hook of mkdocs (`mkdocs.yml`): the pages exist only while the site is built, so they cannot fall behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

_ROOT = Path(__file__).parents[2]
_FORGE = "https://github.com/steerserve/steerserve/blob/main"
_METHODS = ("get", "post", "put", "patch", "delete")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages before the navigation is built."""
    pages = {"routes.md": _routes(), "cli.md": _command_line(), "contributing.md": _contributing()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links that lead out of docs/ (`../presets/README.md`) at the repository."""
    return markdown.replace("](../", f"]({_FORGE}/")


def _routes() -> str:
    """Write the routes of the OpenAPI document, one section each."""
    document = _openapi()
    lines = [
        "# HTTP routes",
        "",
        (
            "Every route with its parameters and bodies, from the OpenAPI document that a running server gives at "
            "`/openapi.json` and shows at `/docs`. [HTTP](http.md) has what they share: keys, errors, streams."
        ),
        "",
    ]
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                lines += _route(method, path, methods[method])
    lines += ["## Objects", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        lines += _object(name, schema)
    return "\n".join(lines) + "\n"


def _openapi() -> dict[str, Any]:
    """Return the OpenAPI document of a server; no model is loaded for it."""
    from steerserve.core.config import Settings  # noqa: PLC0415 only while the site is built
    from steerserve.engine.request import EngineStats  # noqa: PLC0415 the same
    from steerserve.server.app import create_app  # noqa: PLC0415 the same

    stats = EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 0))
    runtime: Any = SimpleNamespace(settings=Settings(), model_id="MODEL", stats=lambda: stats)
    document: dict[str, Any] = create_app(runtime).openapi()
    return document


def _route(method: str, path: str, route: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## `{method.upper()} {path}`", "", str(route.get("description", "")), "")
    rows = [
        (f"`{entry['name']}` ({entry['in']})", _type(entry["schema"]), _text(entry.get("description")))
        for entry in route.get("parameters", [])
    ]
    if rows:
        yield from _table(("parameter", "type", "meaning"), rows)
    if "requestBody" in route:
        kinds = [_type(body["schema"]) for body in route["requestBody"]["content"].values()]
        yield from (f"Body: {' or '.join(dict.fromkeys(kinds))}.", "")
    rows = [
        (
            status,
            " or ".join(dict.fromkeys(_type(b.get("schema", {})) for b in answer.get("content", {}).values())) or "-",
            _text(answer.get("description")),
        )
        for status, answer in route.get("responses", {}).items()
    ]
    yield from _table(("status", "body", "meaning"), rows)


def _object(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"### {name}", "", _text(schema.get("description")), "")
    required = set(schema.get("required", []))
    rows = [
        (f"`{field}`{' *' if field in required else ''}", _type(value), _text(value.get("description")))
        for field, value in schema.get("properties", {}).items()
    ]
    if rows:
        yield from _table(("field (* required)", "type", "meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """Name a schema's type in a few characters, objects as links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema.get("anyOf") or schema["oneOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _text(text: object) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _command_line() -> str:
    """Write every command's help."""
    import typer  # noqa: PLC0415 only while the site is built

    from steerserve.cli import app  # noqa: PLC0415 the same

    lines = ["# Command line", "", "What `steerserve COMMAND --help` says.", ""]
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="steerserve")
    lines += _command(command, context)
    return "\n".join(lines) + "\n"


def _command(command: Any, context: Any) -> Iterator[str]:  # noqa: ANN401 typer brings its own click
    children = getattr(command, "commands", {})
    if not children:
        yield from (f"## `{context.command_path}`", "", _text(command.help), "")
        usage = " ".join(command.collect_usage_pieces(context))
        yield from ("```text", f"{context.command_path} {usage}", "```", "")
        rows = [
            (f"`{_parameter(parameter)}`", _text(getattr(parameter, "help", "")))
            for parameter in command.params
            if parameter.name != "help"
        ]
        if rows:
            yield from _table(("option", "meaning"), rows)
    for name, child in children.items():
        yield from _command(child, type(context)(child, info_name=name, parent=context))


def _parameter(parameter: Any) -> str:  # noqa: ANN401 an option or argument of typer
    return " / ".join(parameter.opts) if parameter.param_type_name == "option" else str(parameter.name).upper()


def _contributing() -> str:
    return (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")
