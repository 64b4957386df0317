"""Code blocks of README and docs can be read, and what they show fits the schemas it is for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.config import Settings
from steerserve.core.keys import KEY_FIELDS, read_keys
from steerserve.core.yaml_document import parse_yaml
from steerserve.experiments.experiment import parse_experiment
from steerserve.experiments.schema import JudgeFile
from steerserve.presets.preset import parse_preset
from steerserve.wire.compare import ComparisonRequest
from steerserve.wire.edits import parse_steering
from steerserve.wire.jobs import JobObject
from steerserve.wire.receipt import Receipt
from steerserve.wire.watching import WatchedToken
from tests.docs.blocks import BLOCKS, ROOT, Block, find_blocks, matches
from tools.corpus.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_a_python_block_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def check_yaml(text: str, folder: Path) -> None:
    """Raise an error unless the text is a valid file of one of our kinds."""
    value = parse_yaml(text, name="block").data
    assert isinstance(value, dict)
    keys = set(value)
    if "sources" in keys:
        Manifest.model_validate(value)
    elif keys <= set(KEY_FIELDS):
        (folder / "keys.yaml").write_text(text, encoding="utf-8")
        assert read_keys({}, folder / "keys.yaml")
    elif keys == {"judge"}:
        JudgeFile.model_validate(value["judge"])
    elif {"arms", "prompts"} <= keys:
        parse_experiment(text, file="block.yaml")
    elif keys <= set(Settings.model_fields):
        Settings.model_validate(value)
    else:
        parse_preset(text, file=f"{value.get('name')}.yaml", name=value.get("name"))


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_a_yaml_block_is_a_valid_file(block: Block, tmp_path: Path) -> None:
    check_yaml(block.text, tmp_path)


def check_json(value: Any) -> None:  # noqa: ANN401 (of any kind)
    """Raise an error unless the value is valid as what its keys say it is."""
    keys = set(value)
    if "error" in keys and isinstance(value["error"], dict):
        assert value["error"].keys() == {"message", "type", "param", "code"}
    elif "fingerprint" in keys:
        assert Receipt.model_validate(value).model_dump(mode="json", exclude_unset=True) == value
    elif keys & {"feature", "vector"}:
        parse_steering([value], max_edits=1)
    elif "arms" in keys:
        ComparisonRequest.model_validate({"model": "any", **value})
    elif keys == {"steering"}:
        parse_steering(value["steering"], max_edits=64)
    elif "token_id" in keys:
        WatchedToken.model_validate(value)
    elif "kind" in keys:
        JobObject.model_validate(value)
    elif keys <= {"text", "messages"}:
        assert all(isinstance(turn["content"], str) for turn in value.get("messages", []))
    else:
        pytest.fail(f"no schema is known for an object with {sorted(keys)}: name it in check_json")


@pytest.mark.parametrize("block", of("json", "jsonl"), ids=str)
def test_a_json_block_is_valid_as_what_it_shows(block: Block) -> None:
    try:
        values = [json.loads(block.text)]
    except json.JSONDecodeError:
        values = [json.loads(line) for line in block.text.splitlines()]  # a file of one object a line
    for value in values:
        check_json(value)


PAGE = """\
Words.

<!-- test: run touch a -->
<!-- test: exit 1 -->

```sh
# a comment
steerserve one \\
    --flag
steerserve two
```

```text
first
...
last ... word
```

Other words, so this is no output:

```text
alone
```

But this is, <!-- test: output --> despite its words:

```text
bound
```

1. In a list:

   <!-- test: skip (needs a network) -->
   ```python
   if True:
       print()
   ```

```yaml
# presets/mine.yaml
name: mine
```
"""


@pytest.fixture
def page() -> list[Block]:
    file = ROOT / "docs" / "of-this-test.md"

    class Text(type(file)):  # type: ignore[misc]
        def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
            del encoding, errors
            return PAGE

    return list(find_blocks(Text(file)))


def test_blocks_are_found_with_their_output_and_markers(page: list[Block]) -> None:
    shell, alone, python, yaml = page
    assert (str(shell), shell.before, shell.exit, shell.skip) == ("docs/of-this-test.md:6", ("touch a",), 1, None)
    assert shell.commands() == ["steerserve one      --flag", "steerserve two"]
    assert shell.output == "first\n...\nlast ... word\n"
    assert (alone.language, alone.text, alone.output) == ("text", "alone\n", "bound\n")
    assert (python.text, python.skip) == ("if True:\n    print()\n", "needs a network")
    assert (yaml.file, shell.file) == ("presets/mine.yaml", None)


@pytest.mark.parametrize(
    ("printed", "is_shown"),
    [
        ("first\nlast good word\n", True),
        ("zero\nfirst  \nsecond\nthird\nlast best word", True),
        ("first\nlast", False),
        ("last a word\nfirst", False),
    ],
)
def test_dots_in_an_output_stand_for_anything(printed: str, is_shown: bool, page: list[Block]) -> None:
    assert page[0].output is not None
    assert matches(page[0].output, printed) == is_shown


def test_every_page_has_its_blocks_found() -> None:
    for page in {block.page for block in BLOCKS}:
        text = (ROOT / page).read_text(encoding="utf-8")
        fences = sum(line.lstrip().startswith("```") for line in text.splitlines())
        outputs = sum(block.output is not None for block in BLOCKS if block.page == page)
        assert fences == 2 * (outputs + sum(block.page == page for block in BLOCKS)), page
