"""Settings come from a file, the environment and flags, and every mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerserve.core.config import Settings
from steerserve.core.errors import ConfigError
from steerserve.core.settings_sources import Flag, load_settings


def write(folder: Path, text: str) -> Path:
    path = folder / "steerserve.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(config: Path | None = None, *, flags: tuple[Flag, ...] = (), **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(config, environ=environ, flags=flags)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_nothing_at_all_serves_the_built_in_model_with_its_dictionary() -> None:
    settings = load_settings(environ={})
    assert settings == Settings()
    assert settings.model.source == "smollm2-135m-instruct"
    assert [(d.id, d.source) for d in settings.dictionaries] == [("res17", "bundled:smollm2-135m-instruct/res17")]
    assert settings.server.host == "127.0.0.1"


def test_another_model_has_no_default_dictionary() -> None:
    assert load_settings(environ={}, flags=[Flag("--model", ("model", "source"), "org/name")]).dictionaries == ()


def test_flags_beat_the_environment_and_the_environment_beats_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "engine: {slots: 1, context: 100, queue: 10}\nmodel:\n  source: a/b\n")
    settings = load_settings(
        config,
        environ={"STEERSERVE_ENGINE__SLOTS": "2", "STEERSERVE_ENGINE__CONTEXT": "200"},
        flags=[Flag("--slots", ("engine", "slots"), 3)],
    )
    assert (settings.engine.slots, settings.engine.context, settings.engine.queue) == (3, 200, 10)
    assert settings.model.source == "a/b"


def test_a_variable_names_the_file_where_no_flag_does(tmp_path: Path) -> None:
    config = write(tmp_path, "log_level: WARNING\n")
    assert load_settings(environ={"STEERSERVE_CONFIG": str(config)}).log_level == "warning"


def test_lists_in_variables_are_commas_or_yaml() -> None:
    environ = {
        "STEERSERVE_SERVER__CORS_ORIGINS": "http://a, http://b",
        "STEERSERVE_DICTIONARIES": '[{"id": "x", "source": "path:/d/x"}, "y=path:/d/y"]',
        "STEERSERVE_DICTIONARY_DIRS": "/d,/e",
    }
    settings = load_settings(environ=environ)
    assert settings.server.cors_origins == ("http://a", "http://b")
    assert [d.id for d in settings.dictionaries] == ["x", "y"]
    assert settings.dictionary_dirs == (Path("/d"), Path("/e"))


def test_dictionaries_may_lie_in_the_folders_that_the_configuration_names() -> None:
    flag = Flag("--dictionary", ("dictionaries",), ["mine=path:/somewhere/mine", "b=bundled:m/b"])
    settings = load_settings(environ={}, flags=[flag])
    assert settings.allowed_dictionary_dirs == (Path("dictionaries"), Path("/somewhere/mine"))


def test_empty_variables_and_null_sections_mean_the_default(tmp_path: Path) -> None:
    config = write(tmp_path, "engine:\n  # slots: 4\nserver: {host: localhost}\n")
    settings = load_settings(config, environ={"STEERSERVE_LOG_LEVEL": "", "OTHER": "x"})
    assert settings.engine == Settings().engine
    assert load_settings(write(tmp_path, "# all of it is a comment\n"), environ={}) == Settings()


def test_what_kubernetes_puts_into_the_environment_is_no_setting() -> None:
    environ = {
        "STEERSERVE_SERVICE_HOST": "10.0.0.1",
        "STEERSERVE_SERVICE_PORT_HTTP": "80",
        "STEERSERVE_PORT": "tcp://10.0.0.1:80",
        "STEERSERVE_PORT_80_TCP_ADDR": "10.0.0.1",
        "STEERSERVE_DNS_PORT": "udp://10.0.0.1:53",
        "STEERSERVE_DNS_SERVICE_HOST": "10.0.0.1",
    }
    assert load_settings(environ=environ) == Settings()
    assert "server.port" in complaint(STEERSERVE_SERVER__PORT="tcp://10.0.0.1:80")


def test_the_home_of_an_unknown_user_is_a_folder_that_is_not_there() -> None:
    assert load_settings(environ={"STEERSERVE_PRESETS_DIR": "~/presets"}).presets_dir == Path.home() / "presets"
    assert "There is no file ~no-such-user/keys.yaml" in complaint(
        STEERSERVE_SERVER__KEYS_FILE="~no-such-user/keys.yaml"
    )
    assert "There is no file ~no-such-user/c.yaml" in complaint(Path("~no-such-user/c.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engine:\n  slot: 4\n", ":2:3: there is no setting engine.slot; did you mean engine.slots?"),
        ("slots: 4\n", ":1:1: there is no setting slots; did you mean engine.slots?"),
        ("zzz: 4\n", ":1:1: there is no setting zzz; it must be one of model, "),
        ("zzz:\n", ":1:1: there is no setting zzz"),
        ("engine: {slots: 5000}\n", ":1:10: engine.slots must be at most 1024, not 5000."),
        ("engine: {slots: on}\n", "engine.slots: the value must be a number, not true."),
        ("engine: {prefill_chunk: some}\n", "engine.prefill_chunk must be 'auto' or a whole number, not 'some'."),
        ("engine: {prefill_chunk: 0}\n", "auto or a number from 1 to 65536, not 0."),
        ("engine: {threads: many}\n", "engine.threads must be a whole number, not 'many'."),
        ("engine: [4]\n", ":1:1: engine must be a mapping of names to values, not a list of 1."),
        ("dictionaries: 3\n", ":1:1: dictionaries must be a list, not 3."),
        ("dictionaries:\n- id: a\n  soruce: b\n", ":3:3: there is no setting dictionaries[0].soruce; did you mean "),
        ("dictionaries:\n- id: a\n", ":2:3: dictionaries[0].source is missing."),
        ("dictionaries:\n- a=b\n- nothing\n", ":3:3: dictionaries[1]: 'nothing' is not ID=SOURCE"),
        ("dictionaries: [a=b, a=c]\n", "two dictionaries have the id 'a'."),
        ("model: {device: tpu}\n", "model.device: it must be auto, cpu, cuda or cuda:N, not 'tpu'."),
        ("model: {dtype: int8}\n", "model.dtype must be 'auto', 'float32', 'bfloat16' or 'float16', not"),
        ("sampling: {temperature: .nan}\n", "sampling.temperature must be a finite number, not nan."),
        ("- model\n", ":1:1: a configuration is a mapping of names to values."),
    ],
)
def test_a_mistake_in_the_file_is_named_with_line_column_and_what_would_be_right(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in complaint(write(tmp_path, text))


def test_a_mistake_in_a_variable_or_flag_is_named_by_it() -> None:
    assert complaint(STEERSERVE_ENGINE__SLOTS="x").startswith(
        "STEERSERVE_ENGINE__SLOTS: engine.slots must be a whole number, not 'x'"
    )
    assert "did you mean server.port?" in complaint(STEERSERVE_PORT="80")
    assert complaint(STEERSERVE_DICTIONARIES="[a").startswith("STEERSERVE_DICTIONARIES:1:3: not valid YAML: ")
    assert "nested too deeply" in complaint(STEERSERVE_DICTIONARIES="[" * 5000)
    said = complaint(STEERSERVE_DICTIONARIES__0__ID="x")
    assert said.startswith("STEERSERVE_DICTIONARIES__0__ID: dictionaries must be a list, not a mapping")
    assert complaint(flags=(Flag("--port", ("server", "port"), 70_000),)).startswith(
        "--port: server.port must be at most 65535, not 70000"
    )


def test_a_flag_over_a_bad_value_in_the_file_is_all_that_counts(tmp_path: Path) -> None:
    config = write(tmp_path, "engine: {slots: 5000}\n")
    assert load_settings(config, environ={}, flags=[Flag("--slots", ("engine", "slots"), 2)]).engine.slots == 2


def test_keys_come_from_the_environment_and_the_keys_file_together(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("api_keys: [from-file]\nadmin_keys: [boss]\n", encoding="utf-8")
    settings = load_settings(
        write(tmp_path, f"server: {{host: 0.0.0.0, keys_file: {keys}}}\n"),
        environ={"STEERSERVE_API_KEY": "one", "STEERSERVE_API_KEYS": "two, one,"},
    )
    assert [key.get_secret_value() for key in settings.server.api_keys] == ["one", "two", "from-file"]
    assert [key.get_secret_value() for key in settings.server.admin_keys] == ["boss"]
    assert "from-file" not in repr(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_an_address_that_others_can_reach_needs_a_key(host: str) -> None:
    assert "set STEERSERVE_API_KEY" in complaint(STEERSERVE_SERVER__HOST=host)
    environ = {"STEERSERVE_SERVER__HOST": host, "STEERSERVE_API_KEY": "k"}
    assert load_settings(environ=environ).server.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert load_settings(environ={"STEERSERVE_SERVER__HOST": host}).server.host == host


def test_keys_in_the_wrong_place_are_refused_and_never_shown(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, "server:\n  api_keys: [hush]\n"))
    assert said.startswith(f"{tmp_path}/steerserve.yaml:2:3: keys do not belong here. Set STEERSERVE_API_KEY")
    assert "hush" not in said
    assert "keys do not belong here" in complaint(STEERSERVE_SERVER__ADMIN_KEYS="hush")
    assert "keys do not belong here" in complaint(STEERSERVE_SERVER="{api_keys: [hush]}")
    assert "hush" not in complaint(STEERSERVE_API_KEY="hush hush")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a]\n", ":1:1: a keys file is a mapping"),
        ("api_key: [a]\n", ":1:1: a keys file has only the lists"),
        ("api_keys: hush\n", ":1:1: api_keys must be a list"),
        ("api_keys: [1234]\n", ":1:12: a key is text"),
        ("api_keys: ['hush hush']\n", ":1:12: a key is text"),
    ],
)
def test_a_keys_file_that_cannot_be_used_says_where(tmp_path: Path, text: str, expected: str) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(text, encoding="utf-8")
    said = complaint(STEERSERVE_SERVER__KEYS_FILE=str(keys))
    assert f"{keys}{expected}" in said
    assert "hush" not in said


def test_settings_never_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().engine.slots = 3  # type: ignore[misc]
