"""A corpus from anywhere becomes files: the hub's through its real client, the model's own through the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from steerserve.core.errors import ConfigError, CorpusError
from steerserve.core.lock import FileLock
from steerserve.jobs.corpus import local_corpus
from steerserve.jobs.work import prepare_and_train
from steerserve.text.corpus import load_corpus
from steerserve.text.hub import HubText, _record
from steerserve.text.sample import SPEECHES, sample_dir
from steerserve.training.options import DictionaryOptions, TrainOptions
from tests.jobs.dataset_hub import dataset_hub
from tests.training.quiet import Quiet

pytestmark = pytest.mark.slow

REPO = "somebody/texts"
SCRIPT = """
import sys
from pathlib import Path
from steerserve.core.errors import SteerserveError
from steerserve.jobs.corpus import local_corpus
from steerserve.training.options import DictionaryOptions, TrainOptions
from tests.training.quiet import Quiet

out, tokens, seed, stop_at, *corpus = sys.argv[1:]
options = TrainOptions(
    out=Path(out), corpus=tuple(corpus), dictionaries=(DictionaryOptions("a"),), tokens=int(tokens), seed=int(seed)
)
try:
    print(*local_corpus(options, Quiet(stop_at=int(stop_at) or None)))
except SteerserveError as error:
    sys.exit(f"{type(error).__name__}: {error.message}")
"""


def options(out: Path, *corpus: str, **others: Any) -> TrainOptions:  # noqa: ANN401 any of the options
    return TrainOptions(out=out, corpus=corpus, dictionaries=(DictionaryOptions("a"),), **others)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    rows: Mapping[str, Sequence[Any]] = {
        "train.jsonl": [{"text": f"document {number} of the sea" if number % 5 else ""} for number in range(200)],
        "chats_test.jsonl": [{"text": "only one"}],
    }
    for name, records in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    return folder


class Client:
    """Prepares in a process of its own, since the hub's client reads its endpoint when it is imported."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "COV_"))},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "home"),
            "PYTHONPATH": str(Path.cwd()),
        }

    def __call__(
        self, *corpus: str, tokens: int = 10**6, seed: int = 0, stop_at: int = 0, out: str = "out"
    ) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", SCRIPT, str(self.folder / out), str(tokens), str(seed), str(stop_at), *corpus]
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env=self.environ, cwd=self.folder, timeout=120
        )


def test_a_data_set_of_the_hub_becomes_a_file_with_its_text_in_an_order_of_the_seed(
    repository: Path, tmp_path: Path
) -> None:
    with dataset_hub(REPO, repository) as endpoint:
        ask = Client(endpoint, tmp_path)
        done, again, other = (ask(f"hf:{REPO}", out=out, seed=seed) for out, seed in (("a", 0), ("b", 0), ("c", 1)))
        few = ask(f"hf:{REPO}:train", out="d", tokens=100)
    assert done.returncode == 0, done.stderr
    texts = [Path(one.stdout.strip()).read_text(encoding="utf-8") for one in (done, again, other, few)]
    assert Path(done.stdout.strip()).name.startswith("somebody--texts-")
    assert len(set(texts[0].splitlines())) == 160
    assert texts[0] == texts[1] != texts[2]
    assert 400 < sum(len(json.loads(line)["text"]) for line in texts[3].splitlines()) < 700
    assert len(load_corpus([done.stdout.strip()]).training) > 100


def test_a_data_set_is_read_on_where_a_run_was_stopped(repository: Path, tmp_path: Path) -> None:
    with dataset_hub(REPO, repository) as endpoint:
        ask = Client(endpoint, tmp_path)
        whole = ask(f"hf:{REPO}", out="whole")
        stopped = ask(f"hf:{REPO}", stop_at=4)
        (part,) = (tmp_path / "out").rglob("*.part")
        num_lines = part.read_bytes().count(b"\n")
        part.write_bytes(part.read_bytes()[:-7])
        done = ask(f"hf:{REPO}")
    assert stopped.stderr.splitlines()[-1].startswith("StoppedError: Stopped while reading hf:somebody/texts:train")
    assert 10 < num_lines < 100
    assert Path(done.stdout.strip()).read_bytes() == Path(whole.stdout.strip()).read_bytes()


def test_what_cannot_be_read_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "folder").mkdir()
    with dataset_hub(REPO, repository) as endpoint:
        ask = Client(endpoint, tmp_path)
        said = {
            source: ask(source).stderr.splitlines()[-1]
            for source in ("hf:somebody/else", f"hf:{REPO}:nosuch", f"hf:{REPO}@nosuch", "hf:some/folder")
        }
    assert "The hub has no data set somebody/else" in said["hf:somebody/else"]
    assert "hf:somebody/texts:nosuch cannot be read: Bad split: nosuch" in said[f"hf:{REPO}:nosuch"]
    assert "hf:somebody/texts@nosuch:train cannot be read" in said[f"hf:{REPO}@nosuch"]
    assert "the working directory has a folder some/folder. Give path:some/folder" in said["hf:some/folder"]


def test_a_data_set_without_text_names_the_columns_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"picture": "a", "label": 3}\n', encoding="utf-8")
    with dataset_hub(REPO, folder) as endpoint:
        done = Client(endpoint, tmp_path)(f"hf:{REPO}")
    assert "has no column messages, conversations or text; it has picture, label." in done.stderr


@pytest.mark.parametrize(
    "spec", ["json", "/etc/passwd", "a/b/c", "a/b:c:d", "a b/c", "", "a/b@", "../x", "x/..", "./x"]
)
def test_only_owner_and_name_are_a_data_set(spec: str) -> None:
    with pytest.raises(CorpusError, match="hf:OWNER/NAME"):
        HubText.parse(spec)


def test_a_data_set_is_named_with_its_configuration_and_split() -> None:
    assert HubText.parse("a/b@en-us.2:train_sft") == HubText("a/b", "en-us.2", "train_sft")
    assert str(HubText.parse("a/b")) == "hf:a/b:train"


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, ["system", "user"]),
        ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, ["user", "assistant"]),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "user", "content": "v"}]}, ["user"]),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "tool", "content": "v"}]}, ["user"]),
        ({"messages": [{"role": "assistant", "content": "a"}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, None),
        ({"messages": [], "text": " "}, None),
        ({"text": None}, None),
    ],
)
def test_conversations_are_kept_as_far_as_a_template_can_take_them(
    row: Mapping[str, Any], roles: list[str] | None
) -> None:
    record = _record(row)
    assert (None if record is None else [turn["role"] for turn in record["messages"]]) == roles


def test_a_long_document_is_cut() -> None:
    turns = [{"role": role, "content": "x" * 15_000} for role in ("user", "assistant", "user")]
    for row in ({"text": "x" * 50_000}, {"messages": turns}):
        record = _record(row)
        assert record is not None
        assert sum(len(turn["content"]) for turn in record.get("messages", ())) + len(record.get("text", "")) == 20_000


def test_folders_and_files_stay_as_they_are_beside_what_the_model_writes(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("The sea is wide.", encoding="utf-8")
    run_options = options(
        tmp_path / "out", f"path:{text}", "self", model=str(model_folders["llama"]), device="cpu", tokens=1000
    )
    observer = Quiet()
    prepared = local_corpus(run_options, observer)
    assert prepared[0] == f"path:{text}"
    assert Path(prepared[1]).parent == run_options.run_dir / "corpus"
    assert observer.stages == ["Writing text with the model"]
    corpus = load_corpus(prepared)
    assert {"a.txt", Path(prepared[1]).name} == set(corpus.sources())

    again = Quiet()
    assert local_corpus(run_options, again) == prepared
    assert not again.stages


def test_another_model_seed_or_amount_is_another_file(model_folders: dict[str, Path], tmp_path: Path) -> None:
    common = {"model": str(model_folders["llama"]), "device": "cpu", "tokens": 300}
    paths = {
        local_corpus(options(tmp_path, "self", **{**common, **changed}), Quiet())
        for changed in ({}, {"seed": 1}, {"tokens": 400})
    }
    assert len(paths) == 3


def test_a_path_that_is_missing_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="There is no"):
        local_corpus(options(tmp_path, "self", str(tmp_path / "nowhere"), model="no-such-model"), Quiet())


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    run_options = options(tmp_path / "out", str(tmp_path / "a.txt"))
    run_options.run_dir.mkdir(parents=True)
    with FileLock(run_options.run_dir / "lock") as lock:
        assert lock.acquire()
        with pytest.raises(ConfigError, match="Another process trains in") as caught:
            prepare_and_train(run_options, Quiet())
    assert caught.value.param == "out"
    with pytest.raises(CorpusError, match="two or more"):  # its text has one document
        prepare_and_train(run_options, Quiet())


def test_a_corpus_of_paths_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    run_options = options(tmp_path / "out", str(tmp_path / "a.txt"))
    assert local_corpus(run_options, Quiet()) == run_options.corpus
    assert not run_options.out.exists()


def test_the_sample_corpus_is_read_in_the_cache_which_a_jobs_folders_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERSERVE_CACHE_DIR", str(tmp_path / "cache"))
    sample_dir().mkdir(parents=True)
    text = "".join(f"{number} ships.\n\n" for number in range(3000))
    (sample_dir() / f"{SPEECHES.requirement.replace('==', '-')}.txt").write_text(text, encoding="utf-8")
    run_options = options(tmp_path / "out", "sample", corpus_dirs=(tmp_path / "text",))
    prepared = local_corpus(run_options, Quiet())
    assert prepared == (str(sample_dir()),)
    assert load_corpus(prepared, allowed_dirs=run_options.text_dirs).training
    with pytest.raises(CorpusError, match="outside the folders"):
        load_corpus(prepared, allowed_dirs=options(tmp_path / "out", "self", corpus_dirs=()).text_dirs)
