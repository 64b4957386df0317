"""The project holds together: layers, light imports, pins, versions, documented settings."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import steerserve
from steerserve.cli import app
from steerserve.core.config import Settings
from steerserve.core.settings_sources import setting_names

ROOT = Path(__file__).parent.parent
PAGES = {file.name: file.read_text(encoding="utf-8") for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {"torch", "transformers", "transformer_lens", "sae_lens"}
# Parts of declared libraries, and the library of the extra `ray`.
NEED_NO_DECLARATION = {"pydantic_core", "ray"}

COME_WITH_THE_ENVIRONMENT = {"pip", "setuptools"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if not line.startswith("#"))
    }


def requirements(*, extra: str = "") -> list[Requirement]:
    declared = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [Requirement(text) for text in declared]


def needed(requirement: Requirement, seen: set[str]) -> set[str]:
    """Return the names of everything that installing `requirement` brings here."""
    name = canonicalize_name(requirement.name)
    if name in seen:
        return seen
    seen.add(name)
    for text in importlib.metadata.requires(name) or []:
        inner = Requirement(text)
        extras = requirement.extras or {""}
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
            needed(inner, seen)
    return seen


@pytest.mark.parametrize(
    "command",
    [(), ("serve",), ("train",), ("interpret",), ("bench",), ("models",), ("dictionaries",), ("corpus",), ("vectors",)],
)
def test_help_answers_without_loading_torch(command: tuple[str, ...]) -> None:
    done = run("-X", "importtime", "-m", "steerserve", *command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & HEAVY


def test_core_schemas_and_the_engines_data_load_no_torch() -> None:
    core = sorted(f"steerserve.core.{file.stem}" for file in (ROOT / "steerserve" / "core").glob("[a-z]*.py"))
    modules = [
        *core,
        "steerserve.engine.request",
        "steerserve.engine.scheduler",
        "steerserve.wire.edits",
        "steerserve.steering.receipt",
    ]
    code = f"import sys, {', '.join(modules)}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = run("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_imports_point_downward() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])")
    assert done.returncode == 0, done.stdout


def test_every_library_that_is_imported_is_declared() -> None:
    imported: set[str] = set()
    for file in (ROOT / "steerserve").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    third_party = imported - sys.stdlib_module_names - {"steerserve"} - NEED_NO_DECLARATION
    providers = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    undeclared = {name for name in third_party if not declared & {canonicalize_name(d) for d in providers[name]}}
    assert not undeclared


def test_everything_that_is_installed_is_pinned_to_an_allowed_version() -> None:
    pinned = pins()
    for requirement in [*requirements(), *requirements(extra="dev")]:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    everything: set[str] = set()
    for requirement in [*requirements(), *requirements(extra="dev")]:
        needed(requirement, everything)
    assert everything <= pinned.keys() | COME_WITH_THE_ENVIRONMENT


def test_pins_name_versions_that_any_index_has() -> None:
    # A local version (+cpu) or a path would be this or that machine's own.
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins().values())


def test_the_version_is_the_same_everywhere() -> None:
    assert importlib.metadata.version("steerserve") == steerserve.__version__


def test_every_setting_is_documented_with_its_default_and_nothing_else_is() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", text, flags=re.MULTILINE))
    sections = {name.rpartition(".")[0] for name in setting_names()}
    assert set(documented) == set(setting_names()) - sections
    defaults = Settings().model_dump(mode="json")
    for name, shown in documented.items():
        section, _, last = name.rpartition(".")
        value = defaults[section] if section else defaults
        if name != "cache_dir" and isinstance(value, dict):
            assert shown == expected(value[last]), name


def expected(default: object) -> str:
    if default is None or default == []:
        return ""
    if isinstance(default, list):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_every_variable_that_is_special_is_documented() -> None:
    from steerserve.core.keys import KEY_VARIABLES
    from steerserve.core.settings_sources import CONFIG_VARIABLE

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in [*KEY_VARIABLES, CONFIG_VARIABLE, "STEERSERVE_CACHE_DIR"])


def test_the_documented_example_is_a_valid_configuration(tmp_path: Path) -> None:
    from steerserve.core.settings_sources import load_settings

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert example is not None
    file = tmp_path / "steerserve.yaml"
    file.write_text(example[1], encoding="utf-8")
    assert load_settings(file, environ={}).model.source == "smollm2-135m-instruct"


def test_what_the_documented_refusals_say_is_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steerserve.core.errors import ConfigError
    from steerserve.core.settings_sources import load_settings

    monkeypatch.chdir(tmp_path)
    file = Path("steerserve.yaml")
    file.write_text("model:\n  dtype: auto\nengine:\n  slot: 3\n", encoding="utf-8")
    for config, environ in ((file, {}), (None, {"STEERSERVE_ENGINE__SLOTS": "5000"})):
        with pytest.raises(ConfigError) as caught:
            load_settings(config, environ=environ)
        assert f"steerserve: {caught.value.message}\n" in PAGES["configuration.md"]


def flags_of_commands() -> dict[str, set[str]]:
    """Return each command as it is typed after `steerserve`, with its flags."""
    found: dict[str, set[str]] = {}
    waiting = [("", typer.main.get_command(app))]
    for name, command in waiting:
        inner = getattr(command, "commands", None)
        if inner is None:
            flags = (flag for one in command.params for flag in (*one.opts, *one.secondary_opts))
            found[name] = {*flags, "--help"}
        else:
            waiting += [(f"{name} {word}".strip(), inner[word]) for word in inner]
    return found


FLAGS = flags_of_commands()


def blocks(*languages: str) -> list[str]:
    fenced = r"^```([\w-]*)\n(.*?)^```$"
    found = [match for page in PAGES.values() for match in re.findall(fenced, page, flags=re.MULTILINE | re.DOTALL)]
    return [text for language, text in found if language in languages]


def shell_commands() -> list[list[str]]:
    """Return the words of each command in a shell block and of each `steerserve ...` in a sentence."""
    lines = [line for text in blocks("sh", "bash", "shell") for line in text.replace("\\\n", " ").splitlines()]
    lines += [span for page in PAGES.values() for span in re.findall(r"`(steerserve [a-z][^`\n]*)`", page)]
    found = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in words if word != "&"] for words in found if words]


def check_steerserve(words: list[str]) -> None:
    command = next((name for name in (" ".join(words[:2]), words[0]) if name in FLAGS), None)
    if command is None:
        assert any(name.startswith(f"{' '.join(words)} ") for name in FLAGS), words
        return
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= FLAGS[command], words


def test_shell_blocks_and_sentences_name_commands_targets_files_and_flags_that_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    seen: set[str] = set()
    for words in shell_commands():
        while re.match(r"\w+=", words[0]):
            variable = words.pop(0).partition("=")[0]
            assert not variable.startswith("STEERSERVE_") or is_variable(variable), variable
        seen.add(words[0])
        if words[0] == "steerserve":
            check_steerserve(words[1:])
        elif words[0] == "make":
            assert words[1] in targets
            for arguments in (word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")):
                check_steerserve([words[1], *arguments.split()])
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words
    assert {"steerserve", "make", "python"} <= seen


def is_variable(name: str) -> bool:
    from steerserve.core.keys import KEY_VARIABLES
    from steerserve.core.settings_sources import CONFIG_VARIABLE, PREFIX

    setting = name.removeprefix(PREFIX).lower().replace("__", ".")
    return setting in setting_names() or name in {*KEY_VARIABLES, CONFIG_VARIABLE}


def test_every_command_is_documented_and_so_are_the_flags_of_serve_and_bench() -> None:
    text = "\n".join(PAGES.values())
    assert {name for name in FLAGS if f"steerserve {name}" not in text} == set()
    for command, page in (("serve", "configuration.md"), ("bench", "bench.md")):
        assert {flag for flag in FLAGS[command] - {"--help"} if flag not in PAGES[page]} == set()


def test_every_link_between_pages_leads_somewhere() -> None:
    for name, page in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#:]+)\)", page):
            if "/bundled/" not in target:  # made by training
                assert (folder / target).exists(), f"{name}: {target}"


def test_no_name_of_a_test_fills_the_screen(request: pytest.FixtureRequest) -> None:
    assert [item.name[:200] for item in request.session.items if len(item.name) > 120] == []
