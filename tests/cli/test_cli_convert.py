"""What `load_models` finds in a model store, the config.toml that a config.properties converts to, and the page."""

from __future__ import annotations

import json
import os
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actorserve import config, torchserve_config, torchserve_store
from actorserve.__main__ import main
from actorserve.command_line import WITHOUT_EFFECT as FLAGS
from actorserve.errors import BadInput, ConfigError
from actorserve.properties import Flags, Values
from actorserve.properties_keys import FLAGS_WITHOUT_EFFECT, KNOWN, TRANSLATED
from actorserve.translation import Archive, Machine, translate

ROOT = Path(__file__).resolve().parents[2]
NO_FLAGS = Flags()
WILD = "0.0.0.0"  # noqa: S104  # it is only translated

# --- the model store ----------------------------------------------------------------------------


def mar(path: Path, **model: str) -> Path:
    """A zip with a manifest of these keys; without any, none."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("h.py", "def handle(data, context):\n    return data\n")
        if model:
            file.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
    return path


def test_store(tmp_path):
    """`all` finds archives and folders by the names that they give themselves, a file's where they give none, and says
    what it leaves out; other files are passed over.
    """
    mar(tmp_path / "x.mar", modelName="named", modelVersion="2.0")
    mar(tmp_path / "no-name.mar")
    (tmp_path / "broken.mar").write_bytes(b"nothing")
    os.mkfifo(tmp_path / "pipe.mar")
    (tmp_path / "readme.txt").touch()
    (tmp_path / ".hidden.mar").touch()
    (tmp_path / "folder" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "folder" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "inside"}}')
    found, notes = torchserve_store.find(tmp_path, [("", "all")])
    assert [(one.path.name, one.name, one.version) for one in found] == [
        ("folder", "inside", "1.0"),
        ("no-name.mar", "no_name", "1.0"),
        ("x.mar", "named", "2.0"),
    ]
    broken, pipe = notes
    assert broken.startswith("load_models: broken.mar is left out: it is broken")
    assert pipe == "load_models: pipe.mar is left out: it is no plain file"


@pytest.mark.parametrize("prefix", ["", "./", "packed/", "./packed/"])
def test_tar(tmp_path, prefix):
    """A tar's manifest is found at its root and in its one folder."""
    source = tmp_path / "MANIFEST.json"
    source.write_text('{"model": {"modelName": "tarred", "modelVersion": "3"}}')
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as file:
        file.add(source, f"{prefix}a.bin")
        file.add(source, f"{prefix}MAR-INF/MANIFEST.json")
    assert torchserve_store.look(tmp_path / "t.tar.gz") == Archive(tmp_path / "t.tar.gz", "tarred", "3")


def test_names_that_are_given(tmp_path):
    """A given name wins over the manifest's; a path is taken by its last part where it is not there as it stands."""
    mar(tmp_path / "x.mar", modelName="named")
    found, _ = torchserve_store.find(tmp_path, [("mine", "x.mar"), ("", "elsewhere/x.mar")])
    assert [(one.path, one.name) for one in found] == [(tmp_path / "x.mar", "mine"), (tmp_path / "x.mar", "named")]


def test_a_store_that_cannot_be_read(tmp_path, monkeypatch):
    """A folder that may not be looked into is an error that names it, whatever is wanted of it."""

    def refuse(path, **_more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    for wanted, key in (("all", "model_store"), ("m.mar", "load_models")):
        with pytest.raises(ConfigError, match="Permission denied") as error:
            torchserve_store.find(tmp_path, [("", wanted)])
        assert error.value.key == key


def test_what_cannot_be_had(tmp_path):
    """A store that is not there, a file that is not in it, and one that is no archive are errors that name them."""
    with pytest.raises(ConfigError, match="model_store: there is no folder"):
        torchserve_store.find(tmp_path / "no", [])
    with pytest.raises(ConfigError, match=r"load_models: there is no a\.mar"):
        torchserve_store.find(tmp_path, [("", "a.mar")])
    (tmp_path / "a.mar").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"load_models: a\.mar cannot be used: it is broken"):
        torchserve_store.find(tmp_path, [("", "a.mar")])
    (tmp_path / "a.txt").touch()
    with pytest.raises(ConfigError, match=r"a\.txt cannot be used: it is neither"):
        torchserve_store.find(tmp_path, [("", "a.txt")])
    mar(tmp_path / "b.mar", modelName="a b")
    with pytest.raises(BadInput, match="no name and version"):
        torchserve_store.look(tmp_path / "b.mar")


# --- conversion ---------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a store of one archive, and an environment without TorchServe's variables."""
    (tmp_path / "store").mkdir()
    mar(tmp_path / "store" / "noop.mar", modelName="noop", handler="h.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TS_CONFIG_FILE", raising=False)
    return tmp_path


def converted(capsys, *arguments: str) -> str:
    """What `convert` prints."""
    with pytest.raises(SystemExit) as ended:
        main(["convert", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    return out


def same(text: str, expected: config.Config) -> None:
    """A config.toml's text is a configuration, and that."""
    assert config.parse(tomllib.loads(text), folder=expected.folder) == expected


def test_convert(place, capsys):
    """The config.toml that is printed comes to the same configuration; each key without effect is a comment, without
    its value.
    """
    text = "model_store=store\nload_models=all\nkeystore_pass=secret\ncolour=red\nallowed_urls=https?://.*\n"
    text += 'models={"noop": {"1.0": {"minWorkers": 2, "maxWorkers": 2}}}\nservice_envelope=json\nnumber_of_gpu=0'
    (place / "config.properties").write_text(text)
    out = converted(capsys, "config.properties")
    expected, _ = torchserve_config.load(Path("config.properties"), NO_FLAGS)
    assert expected.optional == {"noop"}  # `all`; the config.toml names it
    expected = expected.model_copy(update={"optional": frozenset()})
    (place / "config.toml").write_text(out)
    assert config.load(place / "config.toml") == expected
    assert "# keystore_pass has no effect: " in out
    assert "# colour has no effect: " in out
    assert "secret" not in out
    assert expected.models["noop"].source == place / "store" / "noop.mar"


def test_convert_leaves_out_what_a_server_would(place, capsys):
    """With `all`, archives that a server leaves out at its start are left out of the config.toml too, each named in a
    comment that says why; the others are there, and a file without any is one too.
    """
    store = place / "store"
    mar(store / "empty.mar", modelName="empty")
    mar(store / "wild.mar", modelName="wild", handler="h.py", configFile="model-config.yaml")
    with zipfile.ZipFile(store / "wild.mar", "a") as file:
        file.writestr("model-config.yaml", "minWorkers: [")
    (store / "no.mar").write_bytes(b"nothing")
    (place / "config.properties").write_text("model_store=store\nload_models=all\n")
    out = converted(capsys, "config.properties")
    assert list(tomllib.loads(out)["models"]) == ["noop"]
    comments = [line for line in out.splitlines() if "is left out" in line]
    for file, why in {"no.mar": "it is broken", "empty.mar": "handler is missing", "wild.mar": "source: "}.items():
        (comment,) = [line for line in comments if line.startswith(f"# load_models: {file} is left out: ")]
        assert why in comment
    (place / "config.toml").write_text(out)
    with pytest.raises(SystemExit) as ended:
        main(["--check", "config.toml"])
    assert ended.value.code == 0
    capsys.readouterr()
    (store / "noop.mar").unlink()
    assert "models" not in tomllib.loads(converted(capsys, "config.properties"))


def test_convert_finds_the_file(place, capsys, monkeypatch):
    """It is the file that is named, or that of TS_CONFIG_FILE, --ts-config or the working folder, or flags alone; a
    config.toml is refused. --set counts.
    """
    assert 'model_store = "' in converted(capsys, "--model-store", "store")
    (place / "config.properties").write_text("model_store=store\ngrpc_inference_port=1234\n")
    assert "127.0.0.1:1234" in converted(capsys)
    (place / "other.cfg").write_text("model_store=store\ngrpc_inference_port=1235\n")
    assert "127.0.0.1:1235" in converted(capsys, "--ts-config", "other.cfg")
    (place / "third.properties").write_text("model_store=store\ngrpc_inference_port=1236\n")
    monkeypatch.setenv("TS_CONFIG_FILE", "third.properties")
    assert "127.0.0.1:1236" in converted(capsys, "--ts-config", "other.cfg")
    assert "127.0.0.1:1235" in converted(capsys, "other.cfg")
    assert "grace_s = 5" in converted(capsys, "--set", "server.grace_s=5")
    (place / "any.name").write_text("model_store=store\ngrpc_inference_port=1237\n")
    monkeypatch.setenv("TS_CONFIG_FILE", "any.name")
    assert "127.0.0.1:1237" in converted(capsys)
    monkeypatch.delenv("TS_CONFIG_FILE")
    assert "127.0.0.1:1237" in converted(capsys, "--ts-config", "any.name")
    with pytest.raises(SystemExit):
        main(["--check", "--ts-config", "any.name"])
    assert "127.0.0.1:1237" in capsys.readouterr().out
    (place / "config.toml").touch()
    with pytest.raises(SystemExit) as ended:
        main(["convert", "config.toml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "actorserve: config.toml is no config.properties\n"


whole = st.integers(1, 1000).map(str)
flag = st.sampled_from(["true", "false", "TRUE", ""])
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,9}", fullmatch=True)
numbers = ("batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "minWorkers")
version = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(numbers, st.integers(-1, 1000)), "defaultVersion": st.booleans()}
)
FILES = st.fixed_dictionaries(
    {"model_store": text.map(lambda found: f"/{found}")},
    optional={
        **{key: whole for key in sorted(TRANSLATED) if key.endswith(("_port", "_ms", "_size", "_timeout", "_min"))},
        **dict.fromkeys(("default_workers_per_model", "number_of_gpu"), whole),
        **dict.fromkeys(("enable_model_api", "disable_token_authorization", "install_py_dep_per_model", "debug"), flag),
        "default_service_handler": text,
        "blacklist_env_vars": st.sampled_from(["AWS_.*", r"\d+", 'say "x"', "a'b"]),
        "allowed_urls": st.sampled_from(["https://.*", "file://.*,http(s)?://x/.*"]),
        "grpc_inference_address": st.sampled_from([WILD, "::", "localhost"]),
        "service_envelope": st.sampled_from(["json", "body"]),
        "limit_max_image_pixels": flag,
        "models": st.dictionaries(
            name | st.sampled_from("ab"), st.dictionaries(name | st.sampled_from("12"), version, max_size=2), max_size=2
        ).map(json.dumps),
        "colour": text,
        "new\nline": text,
    },
)


names = name | st.sampled_from("ab")  # so that there are versions of one
archives_drawn = st.lists(
    st.builds(lambda file, *of: Archive(Path("/s") / f"{file}.mar", *of), text, names, name | st.sampled_from("12")),
    max_size=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES, archives_drawn, st.integers(0, 4))
def test_convert_is_exact(properties, archives, gpus):
    """Whatever the values, texts that TOML must escape and several versions of one model included: what is printed
    comes to the same configuration.
    """
    machine = Machine(Path("/here"), gpus=gpus, cores=2)
    translation = translate(Values(properties), NO_FLAGS, machine, archives)
    expected = config.parse(translation.content, folder=Path("/here"))
    assert {expected.name_of(entry) for entry in expected.models} == {archive.name for archive in archives}
    assert len(expected.models) == len({(archive.name, archive.version) for archive in archives})
    same(torchserve_config.to_toml(translation, "a\nfile"), expected)


# --- the page -----------------------------------------------------------------------------------


def test_the_page_has_every_key():
    """docs/torchserve-configuration.md has a row for each key and each flag, and none for what there is not."""
    page = (ROOT / "docs" / "torchserve-configuration.md").read_text()
    rows = {
        name.strip("` ")
        for line in page.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    }
    flags = {row for row in rows if row.startswith("--")}
    assert rows - flags == KNOWN
    assert {*FLAGS_WITHOUT_EFFECT, "--start", "--stop", "--models", "--model-store"} <= flags


def test_flags_without_effect_have_reasons():
    """The command line and the words about it name the same flags."""
    assert {flag for flag, *_ in FLAGS} == set(FLAGS_WITHOUT_EFFECT)
