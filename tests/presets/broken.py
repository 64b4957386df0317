"""Preset files with one thing wrong in each, and the line where that is."""

from __future__ import annotations

GOOD = """\
# yaml-language-server: $schema=../steerserve/presets/preset.schema.json
name: formal
version: 2
description: Speaks as if in court.
model: tiny
system: You are formal.
sampling:
  temperature: 0.5
  stop: [END, "\\n\\n"]
  max_tokens: 40
edits:
  - {feature: 3, scale: 2.5}
  - feature: 4
    dictionary: res0
    mode: clamp
    scale: 4
    unit: raw
    positions: generated
    start: 2
    stop: 9
  - vector: {hook: blocks.0.hook_resid_post, values: [1, 2.0, -3]}
    scale: 1
  - {vector: polite, mode: remove}
checks:
  - prompt: Tell me about yourself.
    max_tokens: 20
    seed: 3
    activates: {feature: 3, above: 0.5}
    contains_any: [sir, madam]
  - prompt: What is 2 + 2?
    contains_none: [hey]
    max_kl: 2
    max_repetition: 0.5
"""

_CHANGES = [
    # What is there, what is put in its place, and the line of the complaint.
    ("name: formal", "name: Formal", 2),
    ("name: formal", "name: other", 2),
    ("name: formal", "name: ../formal", 2),
    ("name: formal", "name: formal/x", 2),
    ("name: formal", "name: [formal]", 2),
    ("name: formal", "name: 5", 2),
    ("name: formal", "name: true", 2),
    ("name: formal", "name:", 2),
    ("name: formal", "name: ''", 2),
    ("name: formal", "name: 2026-01-01", 2),
    ("name: formal", f"name: {'a' * 65}", 2),
    ("name: formal", "Name: formal", 2),
    ("name: formal", "name: formal\nname: formal", 3),
    ("name: formal", "name: formal\nnames: formal", 3),
    ("name: formal", "name: formal\n1: x", 3),
    ("name: formal", "name: formal\n? [a]\n: b", 3),
    ("name: formal", "name: formal\non: x", 3),
    ("version: 2", "version: 0", 3),
    ("version: 2", "version: 1.5", 3),
    ("version: 2", "version: '2'", 3),
    ("version: 2", "version: v2", 3),
    ("version: 2", "version: -1", 3),
    ("version: 2", f"version: {10**30}", 3),
    ("version: 2", "versoin: 2", 3),
    ("version: 2", "version: yes", 3),
    ("description: Speaks as if in court.", "description: 5", 4),
    ("description: Speaks as if in court.", "description: {a: b}", 4),
    ("description: Speaks as if in court.", "description: a: b", 4),
    ("description: Speaks as if in court.", "description: 'open", 34),
    ("description: Speaks as if in court.", "description: *anchor", 4),
    ("description: Speaks as if in court.", "description: &a x\nsystem: y", 7),
    ("description: Speaks as if in court.", "description: !!python/name:os.system", 4),
    ("description: Speaks as if in court.", "description: \x07", 4),
    ("description: Speaks as if in court.", f"description: {'x' * 2001}", 4),
    ("description: Speaks as if in court.", "descripton: x", 4),
    ("model: tiny", "model: 3", 5),
    ("model: tiny", "model: ''", 5),
    ("model: tiny", "model:", 5),
    ("model: tiny", "model: [tiny]", 5),
    ("model: tiny", "models: [tiny]", 5),
    ("system: You are formal.", "system: ''", 6),
    ("system: You are formal.", "system: [You, are]", 6),
    ("system: You are formal.", "system: 12", 6),
    ("system: You are formal.", "sytem: You", 6),
    ("system: You are formal.", "system:\n\t- x", 7),
    ("sampling:\n", "sampling: 3\nsampled:\n", 8),
    ("sampling:\n", "sampling: &s\n", None),
    ("temperature: 0.5", "temperature: 3", 8),
    ("temperature: 0.5", "temperature: -0.1", 8),
    ("temperature: 0.5", "temperature: hot", 8),
    ("temperature: 0.5", "temperature: 1e-1", 8),
    ("temperature: 0.5", "temperature: '0.5'", 8),
    ("temperature: 0.5", "temperature: .nan", 8),
    ("temperature: 0.5", "temperature: .inf", 8),
    ("temperature: 0.5", "temperature: on", 8),
    ("temperature: 0.5", "temperature:", 8),
    ("temperature: 0.5", "temprature: 0.5", 8),
    ("temperature: 0.5", "top_p: 1.5", 8),
    ("temperature: 0.5", "top_k: -1", 8),
    ("temperature: 0.5", "top_k: 2.5", 8),
    ("temperature: 0.5", "min_p: 2", 8),
    ("temperature: 0.5", "presence_penalty: 3", 8),
    ("temperature: 0.5", "frequency_penalty: -3", 8),
    ("temperature: 0.5", "repetition_penalty: 0", 8),
    ("temperature: 0.5", "seed: 1.5", 8),
    ("temperature: 0.5", f"seed: {2**63}", 8),
    ("temperature: 0.5", "n: 2", 8),
    ("temperature: 0.5", "stream: true", 8),
    ('stop: [END, "\\n\\n"]', "stop: [1]", 9),
    ('stop: [END, "\\n\\n"]', "stop: {a: b}", 9),
    ('stop: [END, "\\n\\n"]', "stop: ['']", 9),
    ('stop: [END, "\\n\\n"]', f"stop: [{', '.join(['a'] * 65)}]", 9),
    ("max_tokens: 40", "max_tokens: 0", 10),
    ("max_tokens: 40", "max_tokens: many", 10),
    ("max_tokens: 40", "max_token: 40", 10),
    ("max_tokens: 40", "max_tokens: 40.0", 10),
    ("edits:\n", "edit:\n", 11),
    ("edits:\n", "edits: none\nedited:\n", 12),
    ("{feature: 3, scale: 2.5}", "3", 12),
    ("{feature: 3, scale: 2.5}", "", 12),
    ("{feature: 3, scale: 2.5}", "[feature, 3]", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3}", 12),
    ("{feature: 3, scale: 2.5}", "{scale: 3}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3.0, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: three, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: '3', scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: true, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: strong}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1e3}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1000000000}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: .inf}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: .nan}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: }", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: no}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scal: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{featur: 3, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1, scale: 2}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1", 13),
    ("{feature: 3, scale: 2.5}", "{feature: 3, vector: polite, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, mode: ablate, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, mode: abalte}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, mode: multiply, scale: 1, unit: max}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, mode: floor, scale: 1, unit: norm}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1, unit: doses}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1, start: 2}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1, positions: everywhere}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1, special_tokens: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1, dictionary: 7}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 4, dictionary: res0, mode: ablate}", 13),
    ("{feature: 3, scale: 2.5}", "{feature: 0123, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: 1:30}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 1_0, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 0b11, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 0x1f, scale: 1}", 12),
    ("{feature: 3, scale: 2.5}", "{feature: 3, scale: .5}", 12),
    ("start: 2", "start: -2", 19),
    ("start: 2", "start: two", 19),
    ("start: 2", "strat: 2", 19),
    ("stop: 9", "stop: 1", 20),
    ("stop: 9", "stop: last", 20),
    ("mode: clamp", "mode: clamp\n   extra: 1", 16),
    ("unit: raw", "unit: dose\n    unit: raw", 18),
    ("values: [1, 2.0, -3]", "values: [1, x]", 21),
    ("values: [1, 2.0, -3]", "values: 1", 21),
    ("values: [1, 2.0, -3]", "value: [1]", 21),
    ("values: [1, 2.0, -3]", "base64: AAAA, values: [1]", 21),
    ("values: [1, 2.0, -3]", "values: [1], dtype: float32", 21),
    ("hook: blocks.0.hook_resid_post, ", "", 21),
    ("hook: blocks.0.hook_resid_post", "hook: 0", 21),
    ("{vector: polite, mode: remove}", "{vector: polite, mode: clamp, scale: 1}", 23),
    ("{vector: polite, mode: remove}", "{vector: polite, dictionary: res0, scale: 1}", 23),
    ("{vector: polite, mode: remove}", "{vector: 5, mode: remove}", 23),
    ("{vector: polite, mode: remove}", "{vector: polite, mode: remove, scale: 1}", 23),
    ("checks:\n", "check:\n", 24),
    ("checks:\n", "checks: 3\nchecked:\n", 25),
    ("  - prompt: Tell me about yourself.\n", "  - prompt: [hi]\n", 25),
    ("  - prompt: Tell me about yourself.\n", "  - prompt: ''\n", 25),
    ("  - prompt: Tell me about yourself.\n", "  - promt: hi\n", 25),
    ("  - prompt: Tell me about yourself.\n", "  - max_kl: 2\n", 25),
    ("    max_tokens: 20\n", "    max_tokens: 0\n", 26),
    ("    max_tokens: 20\n", "    max_tokens: 100000\n", 26),
    ("    seed: 3\n", "    seed: x\n", 27),
    ("{feature: 3, above: 0.5}", "{feature: 3}", 28),
    ("{feature: 3, above: 0.5}", "{feature: -3, above: 1}", 28),
    ("{feature: 3, above: 0.5}", "{feature: 3, over: 1}", 28),
    ("{feature: 3, above: 0.5}", "3", 28),
    ("contains_any: [sir, madam]", "contains_any: []", 29),
    ("contains_any: [sir, madam]", "contains_any: sir", 29),
    ("contains_any: [sir, madam]", "contains_any: ['']", 29),
    ("contains_any: [sir, madam]", "contain_any: [sir]", 29),
    ("contains_none: [hey]", "contains_none: [1]", 31),
    ("max_kl: 2", "max_kl: -2", 32),
    ("max_kl: 2", "max_kl: small", 32),
    ("max_repetition: 0.5", "max_repetition: 2", 33),
]
_WHOLE = [
    ("", 1),
    ("\n\n", 1),
    ("# nothing but a comment\n", 1),
    ("- name: formal\n", 1),
    ("formal\n", 1),
    ("42\n", 1),
    ("null\n", 1),
    ("name: formal\n", 1),
    ("name: formal\nedits: []\n", 1),
    ("name: formal\nsystem: x\n---\nname: other\n", 3),
    ("name: formal\nsystem: x\n...\nmore\n", 4),
    ("%YAML 9.9\n---\nname: formal\n", 1),
    ("name: formal\nsystem: x\n  edits: []\n", 3),
    ("name: formal\nchecks:\n- prompt: hi\n", 3),
    ("name: formal\n\tsystem: x\n", 2),
    ("{" * 3000, 1),
    ("name: formal\nedits: " + "[" * 3000, 2),
    ("name: formal\nsystem: >\n x\n y: [\nedits: [\n", 6),
    ("name: formal\nsystem: \ud800\n".encode("utf-16", "surrogatepass").decode("utf-16", "replace"), None),
    ("<<: {name: formal}\nsystem: x\n", 1),
    ('{"name": "formal", "edits": [{"feature": 1 "scale": 2}]}', 1),
    ("name: formal\nedits:\n- feature: 1\n  scale: " + "9" * 5000 + "\n", 4),
]


def broken_files() -> list[tuple[str, int | None]]:
    """Return texts, and the line of what is wrong; None where the text happens to be fine."""
    changed = []
    for old, new, line in _CHANGES:
        assert GOOD.count(old) >= 1, old
        changed.append((GOOD.replace(old, new, 1), line))
    return changed + _WHOLE
