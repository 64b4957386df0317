"""The report: it escapes whatever models, labels and files say, shades and splits the right tokens, needs nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from steerserve.experiments.experiment import parse_experiment
from steerserve.experiments.figures import summarise
from steerserve.experiments.judge import WinRate
from steerserve.experiments.report import Results, render_report
from steerserve.experiments.statistics import estimate
from steerserve.experiments.texts import Shades, pieces_of, plain
from tests.experiments.made import RUN, receipt, record

HOSTILE = "</p></div><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}\x00\x1b\u202e]]>"
EXPERIMENT = """\
name: little
description: {hostile}
prompts: [Tell me.]
arms:
  - name: baseline
  - {{name: {hostile}, system: {hostile}, steering: [{{feature: 3, scale: 2, unit: dose}}]}}
"""


class Tags(HTMLParser):
    """Collects elements and attributes, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text = ""
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag not in {"meta", "br"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(text: str, records: list[dict[str, Any]], **fields: Any) -> tuple[str, Tags]:  # noqa: ANN401
    experiment = parse_experiment(text, file="x")
    arms = [arm.name for arm in experiment.content.arms]
    page = render_report(Results(experiment, RUN, records, summarise(records, arms), **fields))
    tags = Tags()
    tags.feed(page)
    assert tags._open == []
    return page, tags


def test_nothing_that_a_model_a_label_or_a_file_says_becomes_part_of_the_page() -> None:
    printable = HOSTILE.replace("\x00", "").replace("\x1b", "")
    quoted = "'" + printable.replace("'", "''") + "'"
    effect = {"dictionary": HOSTILE, "feature": 9, "change": 2.0, "label": HOSTILE}
    records = [
        record("baseline", [HOSTILE, " so"], [1.0, None]),
        record(
            printable,
            [HOSTILE],
            [2.0],
            steering=receipt(HOSTILE, preset=HOSTILE),
            metrics={"first_divergence": 0, "side_effects": [effect]},
        ),
    ]
    for one in records:
        one["prompt"] = HOSTILE
    page, tags = page_of(EXPERIMENT.format(hostile=quoted), records)
    assert not tags.names & {"script", "img", "iframe", "link", "object", "form", "base"}
    assert not any(name.startswith("on") or name in {"src", "srcset"} for name, _ in tags.attributes)
    assert all(value.startswith("#") for name, value in tags.attributes if name == "href")
    assert "49" not in page.replace("{{7*7}}", "")
    assert tags.text.count("alert(1)") >= 6
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://", page.split("<body>")[0])


def test_tokens_are_shaded_by_the_features_largest_activation() -> None:
    first = record("baseline", ["The", " sea", " is"], [0.0, 5.0, None])
    second = record(
        "pushed", ["The", " deep", " sea"], [0.1, 2.5, 10.0], steering=receipt(), metrics={"first_divergence": 1}
    )
    shades = Shades([first, second])
    assert shades.peaks == {("res0", "3"): 10.0}
    assert [(piece.text, piece.level) for piece in pieces_of(first, shades)] == [("The", 0), (" sea", 4), (" is", 0)]
    found = pieces_of(second, shades)
    assert [(piece.text, piece.level, piece.is_shared) for piece in found] == [
        ("The", 0, True),
        (" deep", 2, False),
        (" sea", 9, False),
    ]
    assert found[2].title == "res0/3: 10"
    assert "".join(piece.text for piece in found) == second["text"]


def test_a_text_that_a_stop_cut_shows_no_more_than_it_has() -> None:
    cut = record("baseline", ["one", " two", " three"], [0.0, 0.0, 3.0], text="one tw")
    assert "".join(piece.text for piece in pieces_of(cut, Shades([cut]))) == "one tw"
    bare = {**cut, "metrics": None}
    assert [piece.text for piece in pieces_of(bare, Shades([bare]))] == ["one tw"]


def test_what_a_page_cannot_show_is_replaced() -> None:
    assert plain("a\x00\x1b[31m\ud800\n\tb\x85") == "a\ufffd\ufffd[31m\ufffd\n\tb\ufffd"


def test_the_first_difference_is_marked_once_and_equal_texts_are_said_to_be() -> None:
    text = EXPERIMENT.format(hostile="pushed")
    first = record("baseline", ["a", "b"], [0.0, 0.0])
    differs = record("pushed", ["a", "c"], [0.0, 0.0], steering=receipt(), metrics={"first_divergence": 1})
    page, _ = page_of(text, [first, differs])
    body = page.split('id="texts"')[1]
    assert body.count('class="split" title="first difference from baseline: token 1"') == 1
    shorter = record("pushed", ["a"], [0.0], steering=receipt(), metrics={"first_divergence": 1})
    page, _ = page_of(text, [first, shorter])
    assert "ends here" in page
    same = record("pushed", ["a", "b"], [0.0, 0.0], steering=receipt())
    page, _ = page_of(text, [first, same])
    assert "the same text as baseline" in page


def test_everything_to_run_it_again_is_there_and_the_judges_win_rates() -> None:
    judged = EXPERIMENT.format(hostile="pushed") + "judge: {url: 'http://x/v1', model: m, criterion: Louder}\n"
    records = [record("baseline", ["a"], [0.0]), record("pushed", ["b"], [1.0], steering=receipt())]
    rate = WinRate("pushed", estimate([1.0, 1.0, 0.5], ["a"] * 3), 3, 0, 1, 0.5)
    _, tags = page_of(judged, records, rates=[rate])
    for said in ("steerserve compare x.yaml", "5" * 64, "f1", "torch 2", "prompts: [Tell me.]", "Louder", "83 %"):
        assert said in tags.text


def test_colour_is_only_where_an_interval_leaves_out_zero() -> None:
    records = []
    for seed in range(6):
        shared = {"key": f"k{seed}", "prompt": f"Tell me of {seed}."}
        records += [
            record("baseline", ["a"], [0.0], **shared),
            record(
                "pushed",
                ["b"],
                [0.0],
                **shared,
                steering=receipt(),
                metrics={"kl": 1.0 + seed / 10, "surprise": 1.0 + (-1) ** seed},
            ),
        ]
    page, _ = page_of(EXPERIMENT.format(hostile="pushed"), records)
    table = page.split("<tbody>")[1].split("</tbody>")[0]
    cells = table.split("<tr>")[-1].split("<td>")
    coloured = [cell for cell in cells if 'class="more"' in cell or 'class="less"' in cell]
    assert len(coloured) == 1
    assert "+1.250" in coloured[0]
    assert sum("the same" in cell for cell in cells) == 7
    assert "t on the means of the 6 prompts" in page


def test_the_report_says_how_its_intervals_were_made() -> None:
    for num_prompts, said in ((1, "there is 1"), (2, "there are 2"), (4, "of the 4 prompts"), (20, "prompts, 20 of")):
        records = [
            record(arm, [arm], [float(place)], key=f"k{place}", prompt=f"Tell me of {place}.")
            for place in range(num_prompts)
            for arm in ("baseline", "pushed")
        ]
        page, tags = page_of(EXPERIMENT.format(hostile="pushed"), records)
        assert said in tags.text
        assert ("of the bootstrap" in page) == (num_prompts == 20)
