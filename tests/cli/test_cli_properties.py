"""config.properties as a configuration: what each key means, where values come from, and every kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorserve import config
from actorserve.errors import ConfigError
from actorserve.properties import Flags, Values, parse, settle
from actorserve.properties_keys import TRANSLATED, WITHOUT_EFFECT
from actorserve.torchserve_config import to_toml
from actorserve.translation import Archive, Machine, Translation, to_load, translate

MACHINE = Machine(Path("/here"), gpus=0, cores=2)
NO_FLAGS = Flags()


def translated(
    text: str = "",
    *,
    flags: Flags = NO_FLAGS,
    environment: dict[str, str] | None = None,
    machine: Machine = MACHINE,
    archives: tuple[Archive, ...] = (),
) -> Translation:
    """What a file's text comes to, where it names no store itself with one."""
    if flags.model_store is None and "model_store" not in text:
        text += "\nmodel_store=/store"
    values = settle(parse(text.encode("latin-1")), flags, environment or {})
    return translate(values, flags, machine, archives)


def loaded(*given: object, **more: object) -> config.Config:
    """The same as a configuration: it is valid, then."""
    return config.parse(translated(*given, **more).content, folder=Path("/here"))


# --- what holds ---------------------------------------------------------------------------------


def test_defaults():
    """Without any key: TorchServe's addresses, its answers, tokens on, the model API off, the environment inherited,
    nothing fetched, a worker for each core.
    """
    settings = loaded()
    assert {name: one.address for name, one in settings.listeners.items()} == {
        "inference": "127.0.0.1:7070",
        "management": "127.0.0.1:7071",
    }
    assert {one.compatibility for one in settings.listeners.values()} == {"torchserve"}
    assert {one.key_file for one in settings.listeners.values()} == {Path("/here/key_file.json")}
    assert settings.listeners["inference"].services == ("inference", "health", "reflection")
    assert settings.listeners["management"].services == ("management",)
    server = settings.server
    assert (server.model_api, server.inherit_env, server.token_expiration_min) == (False, True, 60)
    assert (server.registered_workers, server.unregister_grace_s, server.state_dir) == (0, 120, Path("state"))
    assert server.allowed_urls == ()
    assert settings.defaults_of("any", "1.0") == {"workers": {"min": 2}, "threads": "auto"}


LISTENERS = ("listeners", "inference"), ("listeners", "management")
EVERY = ("model_defaults", "*")
KEYS = {
    "grpc_inference_port=1": {("listeners", "inference", "address"): "127.0.0.1:1"},
    "grpc_management_port=0": {("listeners", "management", "address"): "127.0.0.1:0"},
    "grpc_inference_address=::1": {("listeners", "inference", "address"): "[::1]:7070"},
    "grpc_management_address=localhost": {("listeners", "management", "address"): "localhost:7071"},
    "grpc_inference_max_connection_age_ms=1500": {("listeners", "inference", "max_connection_age_s"): 1.5},
    "grpc_inference_max_connection_age_grace_ms=10": {("listeners", "inference", "max_connection_age_grace_s"): 0.01},
    "grpc_management_max_connection_age_ms=1": {("listeners", "management", "max_connection_age_s"): 0.001},
    "grpc_management_max_connection_age_grace_ms=0": {("listeners", "management", "max_connection_age_grace_s"): 0},
    "enable_grpc_ssl=true\ncertificate_file=c.pem\nprivate_key_file=/k.pem": {
        (*one, "tls"): {"certificate": "/here/c.pem", "key": "/k.pem"} for one in LISTENERS
    },
    "max_request_size=9": {(*one, "max_receive_bytes"): 9 for one in LISTENERS},
    "max_response_size=9": {(*one, "max_send_bytes"): 9 for one in LISTENERS},
    "max_request_size=2147483647": {(*one, "max_receive_bytes"): 1 << 30 for one in LISTENERS},
    "job_queue_size=7": {(*EVERY, "queue_size"): 7},
    "default_response_timeout=7": {(*EVERY, "response_timeout_s"): 7},
    "default_startup_timeout=7": {(*EVERY, "startup_timeout_s"): 7},
    "default_workers_per_model=5": {(*EVERY, "workers"): {"min": 5}, ("server", "registered_workers"): 5},
    "debug=true": {(*EVERY, "workers"): {"min": 1}},
    "default_service_handler=h.py:f": {(*EVERY, "handler"): "h.py:f"},
    "service_envelope=JSON": {(*EVERY, "envelope"): "json"},
    "limit_max_image_pixels=false": {(*EVERY, "limit_max_image_pixels"): False},
    "unregister_model_timeout=7": {("server", "unregister_grace_s"): 7},
    "model_store=models": {("server", "model_store"): "/here/models"},
    "install_py_dep_per_model=True": {("server", "install_archive_requirements"): True},
    "enable_model_api=true": {("server", "model_api"): True},
    "token_expiration_min=0": {("server", "token_expiration_min"): 0},
    "blacklist_env_vars=AWS_.*|X": {("server", "hide_env"): ["AWS_.*|X"]},
    "allowed_urls=https://a/.*, file://.*": {("server", "allowed_urls"): ["https://a/.*", "file://.*"]},
    "disable_token_authorization=true": {(*one, "key_file"): None for one in LISTENERS},
    "number_of_gpu=0": {(*EVERY, "device"): None},
    'models={"m": {"2.0": {"minWorkers": 2, "maxWorkers": 3, "batchSize": 4, "maxBatchDelay": 5, "responseTimeout": 6, '
    '"startupTimeout": 7, "parallelLevel": 1, "defaultVersion": true}, "1.0": {"batchSize": 0, "marName": "m.mar"}}}': {
        ("model_defaults", "m/2.0"): {
            "workers": {"min": 2, "max": 3},
            "batch_size": 4,
            "max_batch_delay_ms": 5,
            "response_timeout_s": 6,
            "startup_timeout_s": 7,
        },
        ("model_defaults", "m/1.0"): {},
    },
    'model_snapshot={"name": "x.cfg", "models": {"m": {"1.0": {"marName": "m.mar", "minWorkers": 3}}}}': {
        ("model_defaults", "m/1.0"): {"workers": {"min": 3}}
    },
}


@pytest.mark.parametrize("text", KEYS)
def test_key(text):
    """Each key means what the page says, is a valid configuration then, and is not named as without effect."""
    translation = translated(text)
    for place, value in KEYS[text].items():
        found = translation.content
        for part in place:
            found = found.get(part) if isinstance(found, dict) else None
        assert found == value, place
    assert translation.ignored == {}
    config.parse(translation.content, folder=Path("/here"))


def test_every_key_is_tried_above():
    """No key that has a meaning is without a row above, but those that are tested alone."""
    alone = {"load_models", "use_env_allowed_urls", "enable_envvars_config"}
    tried = {line.partition("=")[0] for text in KEYS for line in text.splitlines()}
    assert tried | alone == TRANSLATED


def test_keys_without_effect():
    """Every other key of TorchServe's, and any unknown one, is accepted and named, with a reason."""
    text = "\n".join(f"{key}=1" for key in (*WITHOUT_EFFECT, "colour"))
    translation = translated(text)
    assert set(translation.ignored) == {*WITHOUT_EFFECT, "colour"}
    assert all(translation.ignored.values())
    assert translated().content == translation.content


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("grpc_inference_prot", "grpc_inference_port"),
        ("Job_Queue_Sise", "job_queue_size"),
        ("keystore_password", "keystore_pass"),
        ("colour", ""),
    ],
)
def test_an_unknown_key_that_is_like_another(key, near):
    """A key that TorchServe does not know is named with the one that it is like, in the log's words and in a comment of
    what it converts to; one that is like none, alone.
    """
    translation = translated(f"{key}=1")
    assert translation.ignored_in_words() == ((f"{key} (did you mean {near}?)" if near else key),)
    (comment,) = [line for line in to_toml(translation, "a file").splitlines() if "no effect" in line]
    end = f"; did you mean {near}?" if near else "."
    assert comment == f"# {key} has no effect: TorchServe does not know it either{end}"


def test_certificates_without_tls():
    """A certificate that gRPC does not use is named too."""
    assert set(translated("certificate_file=c\nprivate_key_file=k").ignored) == {"certificate_file", "private_key_file"}


def test_open_to_the_network():
    """An address that is not loopback is taken, as TorchServe does, and what that means is said."""
    translation = translated("grpc_inference_address=0.0.0.0\ndisable_token_authorization=true")
    assert translation.content["listeners"]["inference"]["insecure"] is True
    assert "insecure" not in translation.content["listeners"]["management"]
    assert translation.notes == (
        "grpc_inference_address: 0.0.0.0 is open to the network without TLS and without tokens",
    )
    config.parse(translation.content, folder=Path("/here"))
    secured = "grpc_inference_address=0.0.0.0\nenable_grpc_ssl=true\ncertificate_file=c\nprivate_key_file=k"
    assert translated(secured).notes == ()
    config.parse(translated(secured).content, folder=Path("/here"))


@pytest.mark.parametrize(
    ("number", "device", "workers"), [("", None, 4), ("9", None, 4), ("2", ["cuda:0", "cuda:1"], 2), ("0", "cpu", 8)]
)
def test_gpus(number, device, workers):
    """number_of_gpu is the most that are used; where nothing says how many, a model has a worker for each, or for each
    core where there is none.
    """
    found = translated(f"number_of_gpu={number}", machine=Machine(Path("/here"), gpus=4, cores=8))
    every = found.content["model_defaults"]["*"]
    assert (every.get("device"), every["workers"]) == (device, {"min": workers})


def archive(file, name, version):
    return Archive(Path("/store") / file, name, version)


def test_models():
    """Each archive becomes an entry, every version of one model too; the same version again is named and left out. An
    archive that is called like an entry of another keeps its name.
    """
    archives = (
        archive("a.mar", "a", "1.0"),
        archive("a2.mar", "a", "2.0"),
        archive("again.mar", "a", "1.0"),
        archive("b.mar", "a-2.0", "1.0"),
    )
    translation = translated(archives=archives)
    assert translation.content["models"] == {
        "a": {"source": "/store/a.mar"},
        "a-2.0_": {"source": "/store/a2.mar", "name": "a"},
        "a-2.0": {"source": "/store/b.mar"},
    }
    (note,) = translation.notes
    assert "/store/again.mar is not loaded, since /store/a.mar is a version 1.0 too" in note


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("", []),
        ('models={"a": {"2.0": {"defaultVersion": true}, "1.0": {"defaultVersion": false}}}', ["a-2.0"]),
        ('models={"a": {"1.0": {"defaultVersion": true}}}', ["a"]),
        ('models={"a": {"3.0": {"defaultVersion": true}}, "b": {"1.0": {"defaultVersion": true}}}', []),
        (
            (
                'models={"a": {"1.0": {"defaultVersion": true}}}\n'
                'model_snapshot={"models": {"a": {"2.0": {"marName": "a2.mar", "defaultVersion": true}}}}'
            ),
            ["a-2.0"],
        ),
    ],
)
def test_default_version(text, default):
    """The first version is the default, unless the JSON calls another so; of one alone nothing need be said."""
    archives = (archive("a.mar", "a", "1.0"), archive("a2.mar", "a", "2.0"), archive("b.mar", "b", "1.0"))
    models = translated(text, archives=archives).content["models"]
    assert [entry for entry, table in models.items() if table.get("default")] == default


# --- where values come from ---------------------------------------------------------------------


def test_file_is_read_as_java_does():
    """Comments, continuations, separators, escapes and Latin-1 are those of Java's properties."""
    text = "# c\n! c\nmodel_store = /s\\\n   tore\nservice_envelope:json\ndefault_service_handler h\\u00e9.py\nx=\xe9"
    assert parse(text.encode("latin-1")) == {
        "model_store": "/store",
        "service_envelope": "json",
        "default_service_handler": "h\u00e9.py",
        "x": "\u00e9",
    }


@pytest.mark.parametrize("text", ["a=\\ud800", "a=\\u0000", "a=\\uzz"])
def test_file_that_is_no_text(text):
    """Broken escapes, zero bytes and half characters are refused."""
    with pytest.raises(ConfigError):
        parse(text.encode())


def test_variables_in_values():
    """$$NAME$$ is that variable, wherever it stands; one that is not set is an error that names the key."""
    environment = {"HOME_OF_IT": "/x", "PORT": "1"}
    settings = loaded("model_store=$$HOME_OF_IT$$/$$PORT$$", environment=environment)
    assert settings.server.model_store == Path("/x/1")
    with pytest.raises(ConfigError, match="model_store: the environment variable NONE_SUCH is not set"):
        translated("model_store=$$NONE_SUCH$$")


def test_precedence():
    """Variables win over flags, and flags over the file; variables count only where the file says so."""
    environment = {"TS_ENABLE_MODEL_API": "false", "TS_MODEL_STORE": "/variable", "TS_GRPC_INFERENCE_PORT": "3"}
    flags = Flags(model_store="/flag", enable_model_api=True, disable_token_auth=True, models=("all",))
    file = "model_store=/file\ngrpc_inference_port=1\nload_models=a.mar\ndisable_token_authorization=false\n"

    def held(text: str) -> tuple[object, ...]:
        values = settle(parse(text.encode()), flags, environment)
        return values["model_store"], values["enable_model_api"], values["grpc_inference_port"], to_load(values)

    assert held(file) == ("/flag", "true", "1", [("", "all")])
    assert held(f"{file}enable_envvars_config=true") == ("/variable", "false", "3", [("", "all")])
    assert "key_file" not in translated(file, flags=flags).content["listeners"]["inference"]
    given = {"TS_DISABLE_TOKEN_AUTHORIZATION": "false"}
    found = translated(f"{file}enable_envvars_config=true", flags=flags, environment=given)
    assert "key_file" in found.content["listeners"]["inference"]


def test_allowed_urls_of_the_environment():
    """TS_ALLOWED_URLS counts only with use_env_allowed_urls=true as well."""
    environment = {"TS_ALLOWED_URLS": "https://b/.*"}
    file = "allowed_urls=https://a/.*\nenable_envvars_config=true\n"
    assert loaded(file, environment=environment).server.allowed_urls == ("https://a/.*",)
    file += "use_env_allowed_urls=true"
    assert loaded(file, environment=environment).server.allowed_urls == ("https://b/.*",)


def test_no_snapshots():
    """--ncs: nothing is remembered; else it is kept in a folder beside the file."""
    assert loaded(flags=Flags(no_config_snapshots=True)).server.state_dir is None
    assert loaded().server.state_dir == Path("state")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", []),
        ("none", []),
        ("ALL", [("", "all")]),
        ("a.mar", [("", "a.mar")]),
        (" a.mar , b = b.mar,,folder", [("", "a.mar"), ("b", "b.mar"), ("", "folder")]),
    ],
)
def test_load_models(value, found):
    """load_models is nothing, all, or a list of archives with or without a name."""
    assert to_load(Values({"load_models": value})) == found


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    "grpc_inference_port=x": 'grpc_inference_port: "x" is wrong: it must be a whole number',
    "grpc_inference_port=65536": 'grpc_inference_port: "65536" is wrong: it must be at most 65535',
    "grpc_management_port=-1": 'grpc_management_port: "-1" is wrong: it must be at least 0',
    "grpc_inference_address=http://127.0.0.1": 'grpc_inference_address: "http://127.0.0.1" is wrong: it must be a host',
    "grpc_inference_max_connection_age_ms=1.5": "grpc_inference_max_connection_age_ms:",
    "grpc_management_max_connection_age_grace_ms=-1": "grpc_management_max_connection_age_grace_ms:",
    "enable_grpc_ssl=true": "certificate_file: is missing",
    "enable_grpc_ssl=true\ncertificate_file=c": "private_key_file: is missing",
    "enable_grpc_ssl=yes": 'enable_grpc_ssl: "yes" is wrong: it must be true or false',
    "max_request_size=0": "max_request_size:",
    "max_response_size=1e6": "max_response_size:",
    "job_queue_size=0": "job_queue_size:",
    "default_workers_per_model=1025": "default_workers_per_model:",
    "default_response_timeout=0": "default_response_timeout:",
    "default_startup_timeout=-5": "default_startup_timeout:",
    "unregister_model_timeout=x": "unregister_model_timeout:",
    "number_of_gpu=x": "number_of_gpu:",
    "token_expiration_min=99999999": "token_expiration_min:",
    "blacklist_env_vars=(": "blacklist_env_vars:",
    "allowed_urls=.*,(": 'allowed_urls: "(" is wrong: it must be a regular expression',
    "enable_model_api=1": "enable_model_api:",
    "disable_token_authorization=on": "disable_token_authorization:",
    "install_py_dep_per_model=x": "install_py_dep_per_model:",
    "limit_max_image_pixels=x": "limit_max_image_pixels:",
    "service_envelope=soap": "service_envelope:",
    "enable_envvars_config=x": "enable_envvars_config:",
    "debug=x": "debug:",
    "models={": "models: is not JSON",
    "models=[]": "models: is wrong: it must be JSON like",
    'models={"m": 3}': "models: is wrong: it must be JSON like",
    'models={"m": {"1.0": 3}}': "models: is wrong: it must be JSON like",
    'models={"m": {"1.0": {"batchSize": "4"}}}': "models: m/1.0.batchSize = '4' is wrong",
    'models={"m": {"1.0": {"batchSize": true}}}': "models: m/1.0.batchSize = True is wrong",
    'models={"m": {"1.0": {"batchSize": 65537}}}': "models: m/1.0.batchSize = 65537 is wrong",
    'models={"m": {"1.0": {"minWorkers": 3, "maxWorkers": 2}}}': "models: m/1.0: maxWorkers = 2 is less",
    'models={"a b": {"1.0": {}}}': "models: a b/1.0 is no name",
    'model_snapshot={"models": {"m": {"1.0": {}}}}': "model_snapshot: m/1.0 has no marName",
    "model_snapshot={}": "model_snapshot: is wrong",
    "load_models=a b=c.mar": "load_models:",
    "load_models=a=": "load_models:",
    "load_models=https://x/y.mar": "load_models: https://x/y.mar is a URL",
    "model_store=": "model_store: is missing",
    "model_store=~nobody.of.this.name/store": 'model_store: "~nobody.of.this.name/store" is wrong: it must be a path',
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake(text):
    """A wrong value is an error that names TorchServe's key, the value, and what would be right."""

    def read() -> None:
        to_load(Values(parse(text.encode())))
        translated(text)

    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value).startswith(MISTAKES[text])
