"""Archives through a running server: registered, served, unregistered, with nothing left on the disk."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from packing import MODEL_TOML, NATIVE_ECHO, make_tar, make_zip, manifest, zip_member

from actorserve import config, testing
from actorserve.actors import archives, model_store, unpacking
from actorserve.actors.archives import Limits
from actorserve.client import Channel
from actorserve.errors import ConfigError, StartFailed
from actorserve.proto import inference_grpc, inference_pb2, management_grpc, management_pb2
from actorserve.server import Server

MEMBERS = {"model.toml": MODEL_TOML.encode(), "native_echo.py": NATIVE_ECHO.encode(), "word.txt": b"said "}
YAML = b"minWorkers: 3\nmaxWorkers: 5\nbatchSize: 8\nmaxBatchDelay: 50\nresponseTimeout: 10\n"
TORCHSERVE = {
    "MAR-INF/MANIFEST.json": manifest(modelName="served", handler="h.py", modelVersion="2.1", configFile="c.yaml"),
    "c.yaml": YAML,
    "h.py": b"def handle(data, context):\n    return data\n",
}


class Site:
    """A store, a cache, and the configuration that names them."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.cache = folder / "cache"
        self.store.mkdir()
        self.content = {"server": {"model_store": str(self.store), "cache_dir": str(self.cache)}, "models": {}}

    def left(self) -> list[str]:
        """Folders of unpacked models."""
        return [str(path) for path in self.cache.glob("archives/*/*")]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


async def manage(app, rpc, **fields):
    """One management call; gives its text."""
    async with app.channel("management") as channel:
        stub = management_grpc.ManagementAPIsServiceStub(channel)
        return (await getattr(stub, rpc)(getattr(management_pb2, f"{rpc}Request")(**fields))).msg


async def predict(app, model):
    """One answer."""
    async with app.channel("inference") as channel:
        assert isinstance(channel, Channel)
        request = inference_pb2.PredictionsRequest(model_name=model, input={"data": b"hello"})
        return (await inference_grpc.InferenceAPIsServiceStub(channel).Predictions(request)).prediction


async def register(app, url, **fields):
    """Register synchronously with one worker."""
    return await manage(app, "RegisterModel", url=url, initial_workers=1, synchronous=True, **fields)


async def test_packed_by_the_archiver(site):
    """An archive that torch-model-archiver packs is registered by its name, by a path inside the store and from the
    config, answers, and is gone from the disk when it is unregistered.
    """
    sources = site.store.parent / "sources"
    sources.mkdir()
    for name, data in MEMBERS.items():
        (sources / name).write_bytes(data)
    for kind, suffix in (("default", ".mar"), ("zip-store", ".mar"), ("tgz", ".tar.gz"), ("no-archive", "")):
        (site.store / kind).mkdir()
        archiver = [
            *(sys.executable, "-W", "ignore", "-m", "model_archiver.model_packaging", "--model-name", "packed"),
            *("--version", "1.0", "--handler", "native_echo.py", "--extra-files", "model.toml,word.txt"),
            *("--archive-format", kind, "--export-path", str(site.store / kind)),
        ]
        await trio.run_process(archiver, cwd=sources, capture_stdout=True, capture_stderr=True)
        assert os.listdir(site.store / kind) == [f"packed{suffix}"]
    site.content["models"]["from_config"] = {"source": str(site.store / "tgz" / "packed.tar.gz")}
    async with testing.serve(site.content) as app:
        assert await predict(app, "from_config") == b"said hello"
        before = site.left()
        for url in ("default/packed.mar", "zip-store/packed.mar", "tgz/packed.tar.gz", "no-archive/packed"):
            assert 'Model "packed" Version: 1.0 registered' in await register(app, url)
            assert await predict(app, "packed") == b"said hello"
            assert len(site.left()) == len(before) + (url != "no-archive/packed")
            await manage(app, "UnregisterModel", model_name="packed")
            assert site.left() == before
    assert list(site.cache.glob("archives/*")) == []


async def test_a_start_that_fails_leaves_nothing(site):
    """Where an address or the state cannot be had, what was unpacked for the models of the file is removed again."""
    make_zip(site.store / "m.mar", TORCHSERVE)
    site.content["models"]["m"] = {"source": str(site.store / "m.mar")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        site.content["listeners"] = {"a": {"address": address, "services": ["inference"]}}
        server = Server(config.parse(site.content, folder=site.store))
        assert len(site.left()) == 1
        with pytest.raises(StartFailed, match="is in use"):
            await server.open()
    assert list(site.cache.glob("archives/*")) == []
    site.content["listeners"]["a"]["address"] = "127.0.0.1:0"
    site.content["server"]["state_dir"] = "state"
    (site.store / "state").write_text("a file, where a folder is to be")
    server = Server(config.parse(site.content, folder=site.store))
    with pytest.raises(StartFailed, match="state_dir"):
        await server.open()
    assert list(site.cache.glob("archives/*")) == []


@pytest.mark.parametrize("wrong", [{"isolation": "thread"}, {"device": "cuda:7"}])
async def test_an_entry_that_is_wrong_leaves_nothing(site, wrong):
    """What was unpacked for an entry that cannot be served after all is removed, also while a server goes on."""
    make_zip(site.store / "m.mar", TORCHSERVE)
    async with testing.serve(site.content, workers="scripted") as app:
        entry = {"source": str(site.store / "m.mar"), **wrong}
        with pytest.raises(ConfigError):
            await app.server.reload(config.parse({**site.content, "models": {"m": entry}}, folder=site.store))
        assert site.left() == []


async def test_torchserves_precedence(site):
    """Of an archive with a handler of TorchServe: request over yaml for batches, yaml over request for workers and
    timeouts, the manifest's name and version; its handler is run by ours, with what was packed.
    """
    make_zip(site.store / "m.mar", TORCHSERVE)
    async with testing.serve(site.content, workers="scripted") as app:
        await manage(app, "RegisterModel", url="m.mar", batch_size=4, initial_workers=1, response_timeout=99)
        (model,) = [view.spec for view in app.tree().models]
    assert (model.name, model.version, model.url) == ("served", "2.1", "m.mar")
    assert (model.batch_size, model.max_batch_delay_s, model.workers_min, model.workers_max) == (4, 0.05, 3, 5)
    assert (model.response_timeout_s, model.startup_timeout_s) == (10, 120)
    assert model.handler == "actorserve.handlers.torchserve.loader:TorchServeHandler"
    told = model.options["torchserve"]
    assert (told["handler"], told["batch_size"], told["model_yaml_config"]["minWorkers"]) == ("h.py", 4, 3)
    assert told["manifest"]["archiverVersion"] == "0.12.0"


async def test_a_models_file(site):
    """A file without an archive is alone in its folder and named in the options, for either kind of handler."""
    for name in ("net.pt", "net.pt2", "net.safetensors"):
        (site.store / name).write_bytes(b"weights")
        async with testing.serve(site.content, workers="scripted") as app:
            await manage(app, "RegisterModel", url=name, handler="a:Native", model_name="native")
            await manage(app, "RegisterModel", url=name, handler="image_classifier")
            theirs, ours = (view.spec for view in sorted(app.tree().models, key=lambda view: view.spec.name != "net"))
            assert ours.options == {"file": name}
            assert theirs.options["torchserve"]["serialized_file"] == name
            for spec in (ours, theirs):
                assert os.listdir(spec.model_dir) == [name]
                assert (spec.model_dir / name).read_bytes() == b"weights"
        assert site.left() == []


REFUSED = {
    "slip": (lambda path: zip_member(path, "../out"), Status.INVALID_ARGUMENT, "member '../out' leads out"),
    "garbage": (lambda path: path.write_bytes(b"garbage"), Status.INVALID_ARGUMENT, "it is broken"),
    "bare": (
        lambda path: make_zip(path, {"a": b"x"}),
        Status.INVALID_ARGUMENT,
        "model_name: Model name is not defined.",
    ),
    "manifest": (lambda path: make_zip(path, {"MAR-INF/MANIFEST.json": b"{"}), Status.INVALID_ARGUMENT, "is not JSON"),
    "yaml": (
        lambda path: make_zip(path, {**TORCHSERVE, "c.yaml": b"!!python/object/apply:os.getpid []"}),
        Status.INVALID_ARGUMENT,
        "c.yaml: it is not YAML",
    ),
    "lsp": (
        lambda path: make_zip(path, {"MAR-INF/MANIFEST.json": b'{"runtime": "LSP"}'}),
        Status.UNIMPLEMENTED,
        "LSP",
    ),
    "handler": (
        lambda path: make_zip(path, {"MAR-INF/MANIFEST.json": manifest(modelName="m")}),
        Status.INVALID_ARGUMENT,
        "handler: is missing",
    ),
    "toml": (lambda path: make_zip(path, {"model.toml": b"pass_env = ['A']"}), Status.INVALID_ARGUMENT, "pass_env"),
    "default": (lambda path: make_zip(path, {"model.toml": b"default = true"}), Status.INVALID_ARGUMENT, "default"),
    "options": (
        lambda path: make_zip(path, {**TORCHSERVE, "model.toml": b"options = 3"}),
        Status.INVALID_ARGUMENT,
        "options: 3 is wrong",
    ),
    "large": (lambda path: make_zip(path, {"a": os.urandom(5000)}), Status.INVALID_ARGUMENT, "max_archive_bytes"),
    "twice": (
        lambda path: make_zip(path, {**TORCHSERVE, "MAR-INF/MANIFEST.json": manifest(modelName="taken", handler="h")}),
        Status.ALREADY_EXISTS,
        "taken",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(site, case):
    """An archive that cannot be served is refused with its reason, and nothing is left on the disk."""
    make, status, text = REFUSED[case]
    make(site.store / "m.mar")
    site.content["models"]["taken"] = {"handler": "a:B"}
    site.content["server"]["max_archive_bytes"] = 4000
    async with testing.serve(site.content, workers="scripted") as app:
        with pytest.raises(GRPCError) as caught:
            await manage(app, "RegisterModel", url="m.mar")
        assert (caught.value.status, text in caught.value.message) == (status, True), caught.value.message
        with trio.fail_after(10):
            while site.left():
                await trio.sleep(0.01)
        assert [view.spec.name for view in app.tree().models] == ["taken"]
    assert not (site.store.parent / "out").exists()


@pytest.mark.parametrize("url", ["circle", "circle/m", "sealed"])
async def test_what_the_file_system_refuses(site, monkeypatch, url):
    """Links in a circle, and a folder that must not be read, are refused with the reason, and are no bug of ours."""

    def sealed(_folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    (site.store / "circle").symlink_to("circle")
    (site.store / "sealed").mkdir()
    monkeypatch.setattr(model_store, "inner", sealed)
    expected = {"sealed": (Status.FAILED_PRECONDITION, "sealed cannot be read: Permission denied")}
    status, text = expected.get(url, (Status.INVALID_ARGUMENT, "url: "))
    async with testing.serve(site.content, workers="scripted") as app:
        with pytest.raises(GRPCError) as caught:
            await manage(app, "RegisterModel", url=url)
    assert (caught.value.status, text in caught.value.message) == (status, True), caught.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_unpacked_bytes", 10), ("max_archive_files", 2), ("max_archive_bytes", 10), ("max_archive_ratio", 1)],
)
def test_limits_have_keys(site, monkeypatch, key, value):
    """Each limit is a key of the config; a wrong archive there is an error of `source` that names the key."""
    monkeypatch.setattr(archives, "SMALL", 1)
    make_tar(site.store / "m.tar.gz", MEMBERS)
    content = {"server": {"cache_dir": str(site.cache), key: value}, "models": {"m": {"source": "store/m.tar.gz"}}}
    with pytest.raises(ConfigError, match=key) as caught:
        testing.Server(config.parse(content, folder=site.store.parent))
    assert caught.value.key == "models.m.source"
    assert list(site.cache.glob("archives/*")) == []


def test_isolation_of_archives(site):
    """An archive's code does not run in the server."""
    make_zip(site.store / "m.mar", TORCHSERVE)
    content = {
        "server": {"cache_dir": str(site.cache)},
        "models": {"m": {"source": "store/m.mar", "isolation": "thread"}},
    }
    with pytest.raises(ConfigError, match="isolation"):
        testing.Server(config.parse(content, folder=site.store.parent))


@pytest.mark.parametrize("asked", [True, False])
async def test_requirements_are_asked_for(site, asked):
    """A manifest's requirements file counts only where `install_archive_requirements` says so."""
    packed = manifest(modelName="m", handler="h.py", requirementsFile="r.txt")
    make_zip(site.store / "m.mar", {"MAR-INF/MANIFEST.json": packed, "r.txt": b"six"})
    site.content["server"]["install_archive_requirements"] = asked
    async with testing.serve(site.content, workers="scripted") as app:
        await manage(app, "RegisterModel", url="m.mar")
        spec = app.tree().models[0].spec
        assert spec.environment.requirements_file == (str(spec.model_dir / "r.txt") if asked else "")


# --- the folder of unpacked models ---------------------------------------------------------------------


async def test_cancelled_while_unpacking(site):
    """Cancelling a registration ends its unpacking, and leaves nothing."""
    archive = make_zip(site.store / "m.mar", {str(number): b"x" for number in range(50)})
    place = unpacking.Unpacking(site.cache, Limits())
    began = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def work(check):
        def slow():
            token.run_sync_soon(began.set)
            while True:
                check()

        return model_store.open_now(archive, place, slow)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.in_thread, work)
        await began.wait()
        nursery.cancel_scope.cancel()
    assert site.left() == []
    place.close()


def test_what_a_killed_server_left_is_removed(site):
    """The next server removes what a killed one left, and leaves a living one's alone."""
    make_zip(site.store / "m.mar", MEMBERS)
    code = (
        "import os, sys; from pathlib import Path; from actorserve.actors.unpacking import Unpacking, archives\n"
        "Unpacking(Path(sys.argv[1]), archives.Limits()).unpack(Path(sys.argv[2])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(site.cache), str(site.store / "m.mar")], check=False)
    assert len(site.left()) == 1
    living, starting = (unpacking.Unpacking(site.cache, Limits()) for _ in range(2))
    kept = living.unpack(site.store / "m.mar")
    assert site.left() == [str(kept)]
    starting.unpack(site.store / "m.mar")
    assert kept.is_dir()
    assert len(site.left()) == 2
    for place in (living, starting):
        place.close()
    assert list(site.cache.glob("archives/*")) == []


HANDLER = b"""
from ts.torch_handler.base_handler import BaseHandler

class Told(BaseHandler):
    def initialize(self, context):
        self.told = f"{context.model_yaml_config['word']} {context.manifest['model']['modelName']} "

    def handle(self, data, context):
        return [self.told + bytes(row["data"]).decode() + f" of {len(data)}" for row in data]
"""


async def test_a_handler_of_torchserve(site):
    """An archive with a handler of TorchServe is served by it, with its manifest and its model-config.yaml."""
    make_zip(site.store / "m.mar", {**TORCHSERVE, "h.py": HANDLER, "c.yaml": YAML + b"word: said by\n"})
    async with testing.serve(site.content) as app:
        await register(app, "m.mar")
        assert await predict(app, "served") == b"said by served hello of 1"
        assert [len(model.replicas) for model in app.tree().models] == [3]


async def test_an_entry_that_is_reloaded(site):
    """A changed entry's archive is unpacked anew and answers; the folder of the old goes with its workers. What is
    unpacked for a configuration that is wrong, or for a rollout that fails, leaves nothing.
    """

    async def reload(**models):
        content = {**site.content, "models": {"m": {"source": str(path), **models.pop("m", {})}, **models}}
        await app.server.reload(config.parse(content, folder=Path.cwd()))

    async def left(count):
        with trio.fail_after(60):
            while len(site.left()) != count:
                await trio.sleep(0.01)

    path = make_zip(site.store / "m.zip", MEMBERS)
    site.content["models"] = {"m": {"source": str(path)}}
    async with testing.serve(site.content) as app:
        (first,) = site.left()
        make_zip(path, {**MEMBERS, "word.txt": b"new "})
        await reload(m={"options": {"a": 1}})
        assert await predict(app, "m") == b"new hello"
        await left(1)
        assert site.left() != [first]
        with pytest.raises(ConfigError, match="there is no folder or archive"):
            await reload(m={"options": {"a": 2}}, n={"source": "nowhere"})
        assert len(site.left()) == 1
        make_zip(path, {name: data for name, data in MEMBERS.items() if name != "word.txt"})
        await reload(m={"options": {"a": 3}})
        await left(1)
        assert await predict(app, "m") == b"new hello"
        assert "word.txt" in app.tree().models[0].rollout
