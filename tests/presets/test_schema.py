"""Preset files are read strictly: what is wrong is said with its line and column, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerserve.core.errors import PresetError
from steerserve.presets.preset import MAX_FILE_BYTES, decode_preset, defaults_of, parse_preset
from steerserve.presets.schema import SCHEMA_FILE, Activates, Check, PresetFile, PresetSampling, schema_text
from tests.presets.broken import GOOD, broken_files

BROKEN = [(text, line) for text, line in broken_files() if line is not None]
WORDS = ["name", "edits", "feature", "scale", "mode", "clamp", "1e3", "null", "[", "]", "{", "}", ":", "- ", "\n", "  "]
WORDS += ["&a", "*a", "!!int", "? ", "'", '"', "#", "|", ">", "\t", "\x00", "\u2028", "\ufeff", ".inf", "0x1F", "1:30"]


def complaint(text: str, name: str | None = "formal") -> PresetError:
    with pytest.raises(PresetError) as caught:
        parse_preset(text, file="formal.yaml", name=name)
    assert re.match(r"formal\.yaml:\d+:\d+: ", caught.value.message), caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 1000
    return caught.value


def check_any(text: str) -> None:
    """Check that a text is read, or refused with a place."""
    with contextlib.suppress(PresetError):
        parse_preset(text, file="formal.yaml", name="formal")
        return
    complaint(text)


def test_a_file_that_says_everything_is_read() -> None:
    preset = parse_preset(GOOD, file="formal.yaml", name="formal")
    assert (preset.name, preset.content.version, preset.content.model) == ("formal", 2, "tiny")
    assert [edit.mode for edit in preset.edits] == ["add", "clamp", "add", "remove"]
    assert preset.content.sampling.stops == ("END", "\n\n")
    assert [check.max_kl for check in preset.content.checks] == [None, 2.0]
    assert preset.text == GOOD


def test_the_smallest_files_are_read() -> None:
    for rest in ("edits: [{feature: 1, scale: 2}]", "system: Be brief.", "sampling: {temperature: 0}"):
        assert parse_preset(f"name: formal\n{rest}\n", file="formal.yaml").name == "formal"


def test_there_are_over_a_hundred_broken_files() -> None:
    assert len({text for text, _ in BROKEN}) > 140


@pytest.mark.parametrize(("text", "line"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_refused_with_its_line(text: str, line: int) -> None:
    assert complaint(text).message.split(":")[1] == str(line)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_happens_to_a_file_it_is_read_or_refused_with_a_line(data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 40)))
        put = data.draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)))
        text = text[:start] + put + text[stop:]
    check_any(text)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_whatever_bytes_a_file_has_it_is_read_or_refused_with_a_line(put: bytes, at: int) -> None:
    data = GOOD.encode()[:at] + put + GOOD.encode()[at:]
    try:
        text = decode_preset(data, file="formal.yaml")
    except PresetError as error:
        text = error.message.removeprefix("formal.yaml:")  # which is no preset either
    check_any(text)


@pytest.mark.parametrize("cut", range(0, len(GOOD) - 1, 7))
def test_a_file_that_is_half_written_is_read_or_refused_with_a_line(cut: int) -> None:
    check_any(GOOD[:cut])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "{feature: 3, scale: 2.5}",
            "{featur: 3, scale: 1}",
            ":12:6: edits[0].featur is not known; did you mean feature?",
        ),
        (
            "{feature: 3, scale: 2.5}",
            "{feature: 3, scale: 1e3}",
            "edits[0].scale must be a number, not '1e3'; write 1000,",
        ),
        ("{feature: 3, scale: 2.5}", "{feature: 3, mode: clmap, scale: 1}", "did you mean clamp?"),
        ("{feature: 3, scale: 2.5}", "{feature: 3, scale: }", "edits[0].scale has no value"),
        (
            "{feature: 3, scale: 2.5}",
            "{feature: 3, mode: ablate, scale: 1}",
            "edits[0].scale: mode ablate takes no scale",
        ),
        (
            "{feature: 3, scale: 2.5}",
            "{feature: 4, dictionary: res0, mode: ablate}",
            "edits[0] (line 12) and edits[1] both set",
        ),
        ("value: 1", "value: 1", ""),
        ("  temperature: 0.5", "  temprature: 0.5", "sampling.temprature is not known; did you mean temperature?"),
        ("name: formal", "name: other", "is called formal.yaml; write name: formal, or rename"),
        ("name: formal", "Name: formal", "did you mean name?"),
        ("values: [1, 2.0, -3]", "vals: [1]", "edits[2].vector.vals is not known; did you mean values?"),
        ("{feature: 3, above: 0.5}", "{feature: 3}", "checks[0].activates.above is missing"),
    ],
)
def test_a_complaint_says_what_would_be_right(old: str, new: str, said: str) -> None:
    if old in GOOD:
        assert said in complaint(GOOD.replace(old, new, 1)).message


def test_a_complaint_names_the_path_of_the_value() -> None:
    text = GOOD.replace("scale: 2.5", "scale: x").replace("max_kl: 2", "max_kl: 2")
    assert complaint(text).param == "edits[0].scale"
    assert complaint("name: formal\nsystem: x\nsampling: {stop: [a, 1]}\n").param == "sampling.stop[1]"
    assert complaint("").param is None


def test_bytes_that_are_no_text_are_refused_with_their_place() -> None:
    with pytest.raises(PresetError, match=r"^formal.yaml:2:9: the file is not UTF-8"):
        decode_preset(b"name: formal\nsystem: \xe9\n", file="formal.yaml")
    with pytest.raises(PresetError, match="may have at most"):
        decode_preset(b"#" * (MAX_FILE_BYTES + 1), file="formal.yaml")


def test_of_several_presets_the_last_decides_and_prompts_are_joined() -> None:
    texts = [
        "name: a\nsystem: Be brief.\nsampling: {temperature: 0.1, seed: 3, stop: x}\n",
        "name: b\nedits: [{feature: 1, scale: 1}]\n",
        "name: c\nsystem: Be kind.\nsampling: {temperature: 0.9, top_p: 0.5}\n",
    ]
    found = defaults_of([parse_preset(text, file="x.yaml") for text in texts])
    assert found.system == "Be brief.\n\nBe kind."
    assert found.sampling.model_dump(exclude_unset=True) == {"temperature": 0.9, "seed": 3, "stop": "x", "top_p": 0.5}
    assert defaults_of([]).system is None


def test_a_preset_fits_the_model_that_it_names_however_that_is_written() -> None:
    preset = parse_preset("name: a\nmodel: HuggingFaceTB/SmolLM2-135M-Instruct\nsystem: x\n", file="a.yaml")
    assert preset.misfit("smollm2-135m-instruct") is None
    assert preset.misfit(None) is None
    misfit = preset.misfit("tiny")
    assert misfit is not None
    assert "'HuggingFaceTB/SmolLM2-135M-Instruct'" in misfit
    assert "'tiny'" in misfit


def test_the_schema_for_editors_is_that_of_the_code() -> None:
    # After a change of the code: steerserve presets schema > steerserve/presets/preset.schema.json
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()
    schema = json.loads(schema_text())
    assert set(schema["properties"]) == set(PresetFile.model_fields)
    described = [*schema["properties"].values(), *schema["$defs"]["Check"]["properties"].values()]
    assert all(one["description"] for one in described)


def test_what_the_documentation_shows_is_read_and_refused_as_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert parse_preset(example, file="french.yaml", name="french").content.version == 2
    with pytest.raises(PresetError) as caught:
        parse_preset(example.replace("scale: 1.5", "scal: 1.5"), file="french.yaml", name="french")
    assert caught.value.message in page
    models = (PresetFile, PresetSampling, Check, Activates)
    fields = {name for model in models for name in model.model_fields}
    assert fields <= set(re.findall(r"\w+", page))
