"""Each kind of file gives its prose, and nothing of what stands around it."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from steerserve.core.errors import CorpusError
from tools.corpus.archives import Member
from tools.corpus.extract import num_chars, read_documents, thin_out
from tools.corpus.manifest import Source
from tools.corpus.markup import aiml_pairs, html_paragraphs, pod_paragraphs

LONG = "The ship sailed on through the quiet night, and nobody on deck said a word about the storm. "


def source(extract: str, **others: Any) -> Source:  # noqa: ANN401 any field of a source
    return Source.model_validate(
        {
            "name": "test",
            "kind": "npm",
            "package": "test",
            "version": "1",
            "licence": "CC0-1.0",
            "files": ["*"],
            "extract": extract,
            "max_chars": 10**6,
            **others,
        }
    )


def texts(extract: str, *contents: str, **others: Any) -> list[str]:  # noqa: ANN401 any field of a source
    members = [Member(f"{place}", content.encode()) for place, content in enumerate(contents)]
    return [record["text"] for record in read_documents(source(extract, **others), members)]


def test_html_keeps_paragraphs_and_lists_and_drops_code_tables_and_navigation() -> None:
    page = """<html><head><title>T</title><style>p {}</style></head><body>
    <nav><ul><li>Menu</li></ul></nav><h1>Title<a>\u00b6</a></h1><p>One <b>bold</b>\n   word &amp; more.<br>Next</p>
    <ul><li>First<li>Second</ul><pre>code()</pre><table><tr><td><p>cell</td></tr></table><script>if (a < b) x()</script>
    <div>Last</div></body></html>"""
    assert list(html_paragraphs(page)) == ["Title", "One bold word & more. Next", "First", "Second", "Last"]


def test_html_that_never_closes_what_it_opens_is_read_to_its_end() -> None:
    assert list(html_paragraphs("<p>a<table><pre>x</table><p>b<p>c</div></p>")) == ["a", "b", "c"]


def test_pod_keeps_prose_and_headings_and_drops_code_and_formatting() -> None:
    page = """=encoding utf8

=head1 NAME of I<it>

Use C<< $a->{b} >> and B<L<the text|perlfunc/open>>, E<lt>here
and thereE<gt>X<index>.

    my $code = 1;

=begin html

<p>left out</p>

=end html

=item * An entry

=cut
"""
    assert list(pod_paragraphs(page)) == ["NAME of it", "Use $a->{b} and the text, <here and there>.", "An entry", ""]


def test_aiml_gives_pairs_that_stand_alone() -> None:
    soup = """<aiml><category><pattern>WHAT CAN I DO</pattern><template>Sail <b>away</b>.<think><set name="x">no</set>
    </think></template></category>
    <category><pattern>I SAIL *</pattern><template>Wildcard.</template></category>
    <category><pattern>YES</pattern><that>DO YOU</that><template>Context.</template></category>
    <category><pattern>HELLO THERE</pattern><template><random><li>First.</li><li>Second <srai>X</srai></li></random>
    </template></category>
    <category><pattern>WHO ARE YOU</pattern><template>I am <bot name="name"/>.</template></category>
    <category><pattern>AGAIN</pattern><template><srai>HELLO</srai></template></category></aiml>"""
    assert list(aiml_pairs(soup)) == [("What can I do?", "Sail away."), ("Hello there.", "First.")]


def test_questions_and_answers_become_chats_without_short_and_common_answers() -> None:
    def category(question: str, answer: str) -> str:
        return f"<category><pattern>{question}</pattern><template>{answer}</template></category>"

    same = "Nobody in this harbour knows the answer to that."
    soup = "".join(category(f"WHO SAILED SHIP {n}", same) for n in range(9))
    soup += "".join(category(f"WHAT IS {n}", f"It is what comes after number {n - 1}.") for n in range(9))
    soup += category("WHY", "No.")
    chats = list(read_documents(source("aiml"), [Member("a", soup.encode())]))
    turns = [turn for chat in chats for turn in chat["messages"]]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 12
    assert [turn["content"] for turn in turns].count(same) == 3
    assert len(chats) == 3


def test_text_wrapped_by_hand_is_joined_and_verse_is_not() -> None:
    wrapped = (LONG * 4).strip()
    verse = "\n".join(f"and so the song goes on, verse {n}" for n in "abcdefgh")
    assert texts("text", textwrap.fill(wrapped, 70)) == [wrapped]
    assert texts("text", verse) == [verse]


def test_a_speech_without_paragraphs_is_cut_between_sentences() -> None:
    pieces = texts("text", LONG * 100)
    assert len(pieces) > 3
    assert all(len(piece) < 3200 and piece.endswith("storm.") for piece in pieces)


def test_a_mail_loses_its_header_and_what_it_quotes() -> None:
    mail = f"From: a@b\nSubject: x\n\n> {LONG}\n\n{LONG * 3}\n"
    assert texts("mail", mail) == [(LONG * 3).strip()]
    assert not texts("mail", f"From: a\n\n<html>{LONG * 3}")


def test_fortunes_are_put_together() -> None:
    sayings = [f"{LONG.strip()} {place}" for place in "abc"]
    assert texts("fortunes", "\n%\n".join(sayings) + "\n%\n") == ["\n\n".join(sayings)]


def test_a_tagged_text_loses_its_tags() -> None:
    line = "\t``/`` The/at sea/nn-hl ''/'' ,/, said/vbd he/pps (/( old/jj and/cc grey/jj )/) ,/, is/bez wide/jj ./.\n"
    (text,) = texts(
        "tagged", "\n\n".join(line.replace("wide", word) for word in ("wide", "cold", "deep", "calm", "blue"))
    )
    assert text.split("\n\n")[0] == '"The sea", said he (old and grey), is wide.'


def test_json_gives_all_texts_or_those_of_one_key_and_never_half_a_character() -> None:
    value = {"a": [{"title": LONG * 3, "body": (LONG * 3).upper() + "\ud800"}], "n": 3}
    both = "\n\n".join([(LONG * 3).strip(), (LONG * 3).upper() + "?"])
    assert texts("json", json.dumps(value)) == [both]
    assert texts("json", json.dumps(value), field="body") == [(LONG * 3).upper() + "?"]
    with pytest.raises(CorpusError, match="not JSON"):
        texts("json", "{")


def test_what_stands_in_every_file_is_kept_once() -> None:
    footer = "This page was made by nobody in particular, long ago and far away from here."
    pages = [f"{LONG * 3}{place}\n\n{footer}" for place in "abc"]
    assert sum(footer in text for text in texts("text", *pages)) == 1


def test_what_is_no_prose_is_left_out() -> None:
    assert not texts("text", "0x3f 0x22 0x11 {};;;" * 40, "short", "12 34 56 78 90 " * 40)


def test_old_encodings_are_read() -> None:
    member = Member("a", (LONG * 3 + "caf\u00e9 \u201cquoted\u201d").encode("cp1252"))
    (record,) = read_documents(source("text"), [member])
    assert record["text"].endswith("caf\u00e9 \u201cquoted\u201d")


def test_thinning_keeps_documents_from_all_over_in_their_order_and_the_same_ones_each_time() -> None:
    records = [{"text": f"{number:04d}" * 10} for number in range(1000)]
    kept = thin_out(records, 4000)
    places = [int(record["text"][:4]) for record in kept]
    assert len(kept) == 100
    assert places == sorted(places)
    assert places[0] < 100
    assert places[-1] > 900
    assert thin_out(records, 4000) == kept
    assert thin_out(records, 10**6) == records
    assert num_chars({"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}]}) == 5
