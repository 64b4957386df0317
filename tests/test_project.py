"""The project holds together: layers, light imports, pins, versions, documented settings."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import steerserve
from steerserve.core.config import Settings, setting_names

ROOT = Path(__file__).parent.parent
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


@pytest.mark.parametrize("command", [(), ("serve",), ("train",), ("bench",), ("models",), ("dictionaries",)])
def test_help_answers_without_loading_torch(command: tuple[str, ...]) -> None:
    done = run("-X", "importtime", "-m", "steerserve", *command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & HEAVY


def test_core_schemas_and_the_engines_data_load_no_torch() -> None:
    core = sorted(f"steerserve.core.{file.stem}" for file in (ROOT / "steerserve" / "core").glob("[a-z]*.py"))
    modules = [*core, "steerserve.engine.request", "steerserve.steering.edits", "steerserve.steering.receipt"]
    code = f"import sys, {', '.join(modules)}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = run("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_imports_point_downward() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
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
    from steerserve.core.layers import CONFIG_VARIABLE

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in [*KEY_VARIABLES, CONFIG_VARIABLE, "STEERSERVE_CACHE_DIR"])


def test_the_documented_example_is_a_valid_configuration(tmp_path: Path) -> None:
    from steerserve.core.layers import load_settings

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert example is not None
    file = tmp_path / "steerserve.yaml"
    file.write_text(example[1], encoding="utf-8")
    assert load_settings(file, environ={}).model.source == "smollm2-135m-instruct"
