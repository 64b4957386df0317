"""Experiments with one thing wrong in each, and the line where that is."""

from __future__ import annotations

GOOD = """\
# yaml-language-server: $schema=../steerserve/experiments/experiment.schema.json
name: little
description: What pushing does.
model: tiny
prompts:
  - Tell me about it.
  - - {role: system, content: You are terse.}
    - {role: user, content: Well}
arms:
  - name: baseline
  - name: pushed
    steering:
      - {feature: 3, scale: 9.0}
      - feature: 4
        scale: 2
        positions: generated
  - {name: control, control_of: pushed}
  - {name: prompted, system: Talk loudly.}
  - {name: mixed, preset: loud, steering: [soft, {feature: 5, scale: 1}]}
seeds: [3, 5]
n: 2
max_tokens: 8
temperature: 0.5
judge:
  url: http://127.0.0.1:9/v1
  model: any
  criterion: Which is louder?
"""

CHANGES = [
    # What is there, what is put in its place, the line of the complaint, and a word of it.
    ("name: little", "name: Little", 2, "lower-case"),
    ("name: little", "name: ../up", 2, "lower-case"),
    ("name: little", "name: 5", 2, "text"),
    ("name: little", "name:", 2, "no value"),
    ("name: little", "nam: little", 2, "did you mean name?"),
    ("name: little", "name: little\nname: other", 3, "twice"),
    ("name: little", "name: little\nrepeat: 3", 3, "must be one of"),
    ("description: What pushing does.", "description: [a]", 3, "text"),
    ("description: What pushing does.", f"description: {'a' * 2001}", 3, "at most 2000"),
    ("model: tiny", "model: ''", 4, "at least 1"),
    ("model: tiny", "model: !!python/name:os.system", 4, "tag"),
    ("  - Tell me about it.", "  - ''", 6, "at least 1"),
    ("  - Tell me about it.", "  - 5", 6, "text"),
    ("  - Tell me about it.", "  - []", 6, "at least 1"),
    ("  - Tell me about it.", "  - Tell me about it.\n  - Tell me about it.", 7, "repeats prompts[0]"),
    ("  - Tell me about it.", "  - Well\n  - - {role: user, content: Well}", 7, "repeats prompts[0]"),
    ("role: system", "role: sistem", 7, "did you mean system?"),
    ("content: You are terse.", "contents: You are terse.", 7, "did you mean content?"),
    (", content: You are terse.", "", 7, "missing"),
    ("  - name: baseline", "  - nam: baseline", 10, "did you mean name?"),
    ("  - name: baseline", "  - name: pushed", 11, "both called"),
    ("  - name: baseline", "  - baseline", 10, "mapping"),
    ("  - name: baseline", "  - {name: ''}", 10, "at least 1"),
    ("feature: 3, scale: 9.0", "feature: 3, scal: 9.0", 13, "did you mean scale?"),
    ("feature: 3, scale: 9.0", "feature: 3", 13, "needs a scale"),
    ("feature: 3, scale: 9.0", "feature: three, scale: 9.0", 13, "integer"),
    ("feature: 3, scale: 9.0", "scale: 9.0", 13, "exactly one"),
    ("scale: 2\n", "scale: .inf\n", 15, "finite"),
    ("scale: 2\n", "scale: 2\n        unit: doses\n", 16, "dose"),
    ("positions: generated", "positions: generatd", 16, "generated"),
    ("control_of: pushed", "control_of: pushd", 17, "Did you mean 'pushed'?"),
    ("control_of: pushed", "control_of: control", 17, "itself"),
    ("control_of: pushed", "control_of: pushed, steering: [{feature: 1, scale: 1}]", 17, "none of its own"),
    ("system: Talk loudly.", "system: ''", 18, "at least 1"),
    ("system: Talk loudly.", "sistem: Talk loudly.", 18, "did you mean system?"),
    ("preset: loud", "preset: LOUD", 19, "lower-case"),
    ("preset: loud", "preset: []", 19, "at least 1"),
    ("{feature: 5, scale: 1}", "{feature: 5, scale: x}", 19, "number"),
    ("seeds: [3, 5]", "seeds: [3, 3]", 20, "twice"),
    ("seeds: [3, 5]", "seeds: []", 20, "at least 1"),
    ("seeds: [3, 5]", "seeds: 0", 20, "at least 1"),
    ("seeds: [3, 5]", "seeds: [-1]", 20, "at least 0"),
    ("seeds: [3, 5]", "seeds: many", 20, "whole number"),
    ("n: 2", "n: 0", 21, "at least 1"),
    ("n: 2", "n: '2'", 21, "without quotes"),
    ("max_tokens: 8", "max_tokens: 1.5", 22, "whole number"),
    ("temperature: 0.5", "temperature: 3", 23, "at most 2"),
    ("temperature: 0.5", "temperature: .nan", 23, None),
    ("temperature: 0.5", "temprature: 0.5", 23, "did you mean temperature?"),
    ("temperature: 0.5", "temperature: 0.5\ntop_p: 2", 24, "at most 1"),
    ("temperature: 0.5", "temperature: 0.5\npresence_penalty: 3", 24, "at most 2"),
    ("temperature: 0.5", "temperature: 0.5\nstop: [a, '']", 24, "at least 1"),
    ("temperature: 0.5", "temperature: 0.5\nstop: 5", 24, "text"),
    ("url: http://127.0.0.1:9/v1", "url: 127.0.0.1:9", 25, "http://"),
    ("  model: any", "  modell: any", 26, "did you mean model?"),
    ("  criterion: Which is louder?\n", "", 24, "missing"),
    ("  criterion: Which is louder?", "  criterion: *a", 27, None),
    ("  criterion: Which is louder?", "  criterion: [", 28, "YAML"),
    ("  criterion: Which is louder?", "  criterion: a\u0007", 27, "take it out"),
    ("  criterion: Which is louder?", "\tcriterion: a", 27, "YAML"),
]


def broken() -> list[tuple[str, int, str | None]]:
    """Return the texts of all, each with a line and a word of what is to be said."""
    found = []
    for there, instead, line, word in CHANGES:
        text = GOOD.replace(there, instead, 1)
        if text == GOOD:
            message = f"{there!r} is not there"
            raise ValueError(message)
        found.append((text, line, word))
    prompts = GOOD[GOOD.index("prompts:") : GOOD.index("arms:")]
    arms = GOOD[GOOD.index("arms:") : GOOD.index("seeds:")]
    return [
        *found,
        ("", 1, "empty"),
        ("- a\n", 1, "mapping"),
        (GOOD.replace(prompts, ""), 1, "prompts is missing"),
        (GOOD.replace(prompts, "prompts: []\n"), 5, "at least 1"),
        (GOOD.replace(arms, ""), 1, "arms is missing"),
        (GOOD.replace(arms, "arms: []\n"), 9, "at least 1"),
        (GOOD.replace(arms, "arms:\n" + "".join(f"  - name: a{place}\n" for place in range(17))), 9, "at most 16"),
        (GOOD + "---\nname: a\n", 28, None),
    ]
