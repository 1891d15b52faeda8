"""`[model_defaults]`: what holds where nothing closer says it, at the start and for RegisterModel."""

import json

import pytest
from packing import make_zip, manifest

from actorserve import config, testing
from actorserve.actors import archives, model_store
from actorserve.actors.unpacking import Unpacking
from actorserve.errors import ConfigError
from actorserve.handlers.torchserve.loader import KEYS
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import DescribeModelRequest, RegisterModelRequest

HANDLER = {"h.py": b"def handle(data, context):\n    return data\n"}
YAML = b"minWorkers: 3\nmaxWorkers: 5\nbatchSize: 8\nresponseTimeout: 10\n"
DEFAULTS = {
    "*": {
        "queue_size": 7,
        "batch_size": 4,
        "response_timeout_s": 11.0,
        "workers": {"min": 2},
        "envelope": "json",
        "limit_max_image_pixels": False,
    },
    "noop": {"batch_size": 5, "max_batch_delay_ms": 50.0},
    "noop/2.0": {"batch_size": 6},
}


def archive(folder, name="noop", version="2.0", yaml=None, handler="h.py"):
    """A .mar in a folder; gives its path."""
    model = {"modelName": name, "modelVersion": version, "handler": handler}
    members = dict(HANDLER)
    if yaml is not None:
        model["configFile"] = "c.yaml"
        members["c.yaml"] = yaml
    return make_zip(folder / f"{name}.mar", {"MAR-INF/MANIFEST.json": manifest(**model), **members})


def spec_at_start(folder, model, defaults, name="noop"):
    """What a model of the configuration comes to."""
    settings = config.parse({"models": {name: model}, "model_defaults": defaults}, folder=folder)
    unpacking = Unpacking(folder / "cache", archives.Limits(), installs_requirements=False, devices=())
    try:
        return model_store.of_config(
            name, settings.models[name], folder=folder, unpacking=unpacking, defaults=settings.defaults_of
        )
    finally:
        unpacking.close()


def test_the_closest_table_wins(tmp_path):
    """Version before name before `*`, key by key; what none says is the default of `[models.NAME]`."""
    archive(tmp_path)
    spec = spec_at_start(tmp_path, {"source": "noop.mar"}, DEFAULTS)
    assert (spec.batch_size, spec.max_batch_delay_s, spec.queue_size, spec.workers_min) == (6, 0.05, 7, 2)
    assert spec.startup_timeout_s == 120.0
    archive(tmp_path, version="1.0")
    assert spec_at_start(tmp_path, {"source": "noop.mar"}, DEFAULTS).batch_size == 5
    archive(tmp_path, name="other")
    assert spec_at_start(tmp_path, {"source": "other.mar"}, DEFAULTS, name="other").batch_size == 4


def test_the_archive_and_the_entry_win(tmp_path):
    """What an archive says of itself wins over the defaults, and the entry over both."""
    archive(tmp_path, yaml=YAML)
    spec = spec_at_start(tmp_path, {"source": "noop.mar"}, DEFAULTS)
    assert (spec.batch_size, spec.workers_min, spec.workers_max, spec.response_timeout_s) == (8, 3, 5, 10.0)
    assert spec.queue_size == 7
    spec = spec_at_start(tmp_path, {"source": "noop.mar", "batch_size": 1, "queue_size": 9}, DEFAULTS)
    assert (spec.batch_size, spec.queue_size) == (1, 9)


def test_a_handler_for_sources_without_one(tmp_path):
    """`handler` is for a source that names none; what is for TorchServe's handlers reaches these alone."""
    archive(tmp_path, handler="")
    spec = spec_at_start(tmp_path, {"source": "noop.mar"}, {"*": {"handler": "h.py", "envelope": "json"}})
    options = spec.options["torchserve"]
    assert (options["handler"], options["envelope"], options["batch_size"]) == ("h.py", "json", 1)
    native = {"handler": "actorserve.handlers.echo:Echo"}
    spec = spec_at_start(tmp_path, native, DEFAULTS)
    assert (spec.options, spec.batch_size, spec.workers_min) == ({}, 5, 2)


def test_options_of_handlers_are_known_there():
    """Every key that is handed on to TorchServe's handlers is one that their loader takes."""
    assert set(model_store.FOR_TORCHSERVE) <= KEYS


async def test_registered(tmp_path):
    """RegisterModel: the call wins over the archive, the archive over the defaults; workers are a key of their own."""
    archive(tmp_path)
    given = {
        "server": {"model_store": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "registered_workers": 1},
        "listeners": {"a": {"address": "127.0.0.1:0", "services": ["management"]}},
        "model_defaults": DEFAULTS,
    }
    async with testing.serve(given, workers="scripted") as app, app.channel("a") as channel:
        stub = ManagementAPIsServiceStub(channel)
        request = RegisterModelRequest(url="noop.mar", max_batch_delay=3, synchronous=True)
        said = (await stub.RegisterModel(request)).msg
        assert said == 'Model "noop" Version: 2.0 registered with 1 initial workers'
        (found,) = json.loads((await stub.DescribeModel(DescribeModelRequest(model_name="noop"))).msg)
        assert (found["batchSize"], found["maxBatchDelay"], found["responseTimeout"]) == (6, 3, 11)
        assert found["jobQueueStatus"]["remainingCapacity"] == 7
        (model,) = app.tree().models
        assert model.spec.options["torchserve"]["limit_max_image_pixels"] is False


@pytest.mark.parametrize(
    ("defaults", "wrong"),
    [
        ({"no op": {}}, 'neither "*" nor "name" nor "name/version"'),
        ({"noop/": {}}, 'neither "*" nor "name" nor "name/version"'),
        ({"*": {"batchsize": 1}}, "model_defaults.*.batchsize: unknown key; did you mean batch_size?"),
        ({"*": {"batch_size": 0}}, "model_defaults.*.batch_size: 0 is wrong: it must be at least 1"),
        ({"*": {"envelope": "soap"}}, "model_defaults.*.envelope"),
    ],
)
def test_mistakes(tmp_path, defaults, wrong):
    """Tables for nothing that can be a model, unknown keys and wrong values are named."""
    with pytest.raises(ConfigError) as caught:
        config.parse({"model_defaults": defaults}, folder=tmp_path)
    assert wrong in str(caught.value)


@pytest.mark.parametrize("pattern", ["(", "*"])
def test_hide_env_are_patterns(tmp_path, pattern):
    """What is no regular expression is an error that says so."""
    with pytest.raises(ConfigError, match="no regular expression"):
        config.parse({"server": {"hide_env": [pattern]}}, folder=tmp_path)
