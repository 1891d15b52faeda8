"""Registering from URLs, through a running server: the model that comes, what is shown meanwhile, what is left."""

import json
import os

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from packing import MODEL_TOML, NATIVE_ECHO, make_zip
from web import answer, redirect, web

from actorserve import testing
from actorserve.client import Channel
from actorserve.errors import LoadFailed
from actorserve.proto import inference_grpc, inference_pb2, management_grpc, management_pb2

ANY = r"http://127\.0\.0\.1:[0-9]+/.*"
"""The pages here: they open after the server and end before it, so that what is left is the server's."""
MEMBERS = {"model.toml": MODEL_TOML.encode(), "native_echo.py": NATIVE_ECHO.encode(), "word.txt": b"said "}


class Site:
    """A model store, a cache, an archive that is elsewhere, and the configuration."""

    def __init__(self, folder):
        self.store = folder / "store"
        self.cache = folder / "cache"
        self.archive = make_zip(folder / "packed.mar", MEMBERS).read_bytes()

    def content(self, *patterns, **server):
        given = {"model_store": str(self.store), "cache_dir": str(self.cache), "allowed_urls": list(patterns)}
        return {"server": given | server, "models": {}}

    def left(self):
        """Files of the store, and folders of unpacked models."""
        stored = sorted(os.listdir(self.store)) if self.store.exists() else []
        return stored, len(list(self.cache.glob("archives/*/*")))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


async def manage(app, rpc, **fields):
    """One management call; gives its text."""
    async with app.channel("management") as channel:
        stub = management_grpc.ManagementAPIsServiceStub(channel)
        return (await getattr(stub, rpc)(getattr(management_pb2, f"{rpc}Request")(**fields))).msg


async def refused(app, status, text, **fields):
    """RegisterModel fails so."""
    with pytest.raises(GRPCError) as caught:
        await manage(app, "RegisterModel", **fields)
    assert (caught.value.status, text in caught.value.message) == (status, True), caught.value.message


async def predict(app, model):
    async with app.channel("inference") as channel:
        assert isinstance(channel, Channel)
        request = inference_pb2.PredictionsRequest(model_name=model, input={"data": b"hello"})
        return (await inference_grpc.InferenceAPIsServiceStub(channel).Predictions(request)).prediction


async def test_registered_served_unregistered(site):
    """A model from a URL answers; it is described by its URL without the query; unregistered its file is gone from the
    store, and it can be registered anew.
    """
    async with testing.serve(site.content(ANY)) as app, web() as pages:
        pages.pages["/m.mar"] = answer(site.archive)
        for _ in range(2):
            url = pages.url("/m.mar?sig=secret")
            label = await manage(app, "RegisterModel", url=url, model_name="m", initial_workers=1, synchronous=True)
            assert label == 'Model "m" Version: 1.0 registered with 1 initial workers'
            assert await predict(app, "m") == b"said hello"
            (described,) = json.loads(await manage(app, "DescribeModel", model_name="m"))
            assert described["modelUrl"] == pages.url("/m.mar")
            assert site.left() == (["m.mar"], 1)
            await refused(app, Status.ALREADY_EXISTS, "Model file already exists m.mar", url=url, model_name="n")
            await manage(app, "UnregisterModel", model_name="m")
            assert site.left() == ([], 0)
        assert pages.targets == ["/m.mar?sig=secret"] * 2


async def test_nothing_is_fetched_by_default(site):
    """Without an allow-list an https URL fails with TorchServe's text, and is never asked."""
    async with testing.serve(site.content(), workers="scripted") as app, web() as pages:
        for url in ("https://download.pytorch.org/models/densenet161.mar", pages.url("/m.mar"), "file:///etc/m.mar"):
            text = f"Given URL {url} does not match any allowed URL(s)"
            await refused(app, Status.NOT_FOUND, text, url=url, model_name="m", synchronous=True)
        await refused(app, Status.INVALID_ARGUMENT, "Relative path is not allowed in url: https://a/../m.mar",
                      url="https://a/../m.mar")  # fmt: skip
        assert pages.requests == []
        assert site.left() == ([], 0)


class Cannot(testing.ScriptedWorker):
    """Loads nothing."""

    async def load(self, content):
        raise LoadFailed("no")


BAD = {
    "broken": ({"url": "/broken.mar", "model_name": "m"}, Status.INVALID_ARGUMENT, "'broken.mar' cannot be used"),
    "nameless": ({"url": "/m.mar"}, Status.INVALID_ARGUMENT, "Model name is not defined."),
    "field": ({"url": "/m.mar", "model_name": "m", "handler": "no handler:X"}, Status.INVALID_ARGUMENT, "handler"),
    "taken": ({"url": "/m.mar", "model_name": "taken"}, Status.ALREADY_EXISTS, "registered already"),
    "load": ({"url": "/m.mar", "model_name": "m", "initial_workers": 1}, Status.FAILED_PRECONDITION, "no"),
    "missing": ({"url": "/none.mar", "model_name": "m"}, Status.INVALID_ARGUMENT, "Failed to download archive from"),
    "redirect": ({"url": "/away.mar", "model_name": "m"}, Status.NOT_FOUND, "does not match any allowed URL(s)"),
}


@pytest.mark.parametrize("case", BAD)
async def test_refused_with_nothing_left(site, case):
    """Whatever a registration from a URL fails by, neither a file nor a folder nor a model of it is left."""
    fields, status, text = BAD[case]
    content = site.content(ANY)
    content["models"]["taken"] = {"handler": "a:B", "workers": {"min": 0}}
    async with testing.serve(content, workers=testing.ScriptedWorkers(Cannot)) as app, web() as pages:
        pages.pages |= {
            "/m.mar": answer(site.archive),
            "/broken.mar": answer(b"broken"),
            "/away.mar": redirect("http://169.254.169.254/latest/meta-data/"),
        }
        given = {**fields, "url": pages.url(fields["url"])}
        await refused(app, status, text, synchronous=True, **given)
        assert site.left() == ([], 0)
        assert [model.spec.name for model in app.tree().models] == ["taken"]
        assert list(json.loads(await manage(app, "ListModels"))) == ["models"]


async def test_progress(site):
    """While a registration downloads, DescribeModel of its name and ListModels show how far it is, also where it is
    not synchronous; then the model is there. A model of another name is as unknown as before.
    """
    half, go_on = trio.Event(), trio.Event()

    async def page(stream):
        await stream.send_all(answer(site.archive[:100], content_length=len(site.archive)))
        half.set()
        await go_on.wait()
        await stream.send_all(site.archive[100:])

    async with testing.serve(site.content(ANY), workers="scripted") as app, web() as pages:
        pages.pages["/m.mar"] = page
        url = pages.url("/m.mar")
        async with trio.open_nursery() as nursery:

            async def register():
                await manage(app, "RegisterModel", url=f"{url}?sig=secret", model_name="m", initial_workers=1)

            nursery.start_soon(register)
            await half.wait()
            expected = {
                "modelName": "m",
                "modelUrl": url,
                "status": "DOWNLOADING",
                "downloadedBytes": 100,
                "totalBytes": len(site.archive),
                "workers": [],
            }
            while json.loads(await manage(app, "DescribeModel", model_name="m")) != [expected]:
                await trio.lowlevel.checkpoint()
            assert json.loads(await manage(app, "ListModels")) == {"models": [], "registrations": [expected]}
            with pytest.raises(GRPCError, match="Model not found: n"):
                await manage(app, "DescribeModel", model_name="n")
            go_on.set()
        assert list(json.loads(await manage(app, "ListModels"))) == ["models"]
        (described,) = json.loads(await manage(app, "DescribeModel", model_name="m"))
        assert (described["modelVersion"], described["modelUrl"]) == ("1.0", url)


async def test_a_cancelled_call_has_not_happened(site):
    """A client that goes away while its model downloads leaves neither a file nor a registration, nor a line in the
    lists; the same URL can be registered by the next.
    """
    begun = trio.Event()

    async def page(stream):
        await stream.send_all(answer(site.archive[:100], content_length=len(site.archive)))
        begun.set()
        await trio.sleep_forever()

    async with testing.serve(site.content(ANY), workers="scripted") as app, web() as pages:
        pages.pages["/m.mar"] = page
        fields = {"url": pages.url("/m.mar"), "model_name": "m"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: manage(app, "RegisterModel", **fields))
            await begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while site.left() != ([], 0):
                await trio.sleep(0.01)
        assert json.loads(await manage(app, "ListModels")) == {"models": []}
        pages.pages["/m.mar"] = answer(site.archive)
        await manage(app, "RegisterModel", **fields)


async def test_two_clients_at_once(site):
    """Of two that register the same URL at once one succeeds, the other is told that the file exists."""
    both, told = trio.Event(), []

    async def page(stream):
        await both.wait()
        await stream.send_all(answer(site.archive))

    async with testing.serve(site.content(ANY)) as app, web() as pages:
        pages.pages["/m.mar"] = page

        async def register():
            try:
                told.append(
                    await manage(app, "RegisterModel", url=pages.url("/m.mar"), model_name="m", initial_workers=1)
                )
            except GRPCError as error:
                told.append(error.status)
                both.set()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(register)
                nursery.start_soon(register)
        assert told == [Status.ALREADY_EXISTS, "Processing worker updates..."]
        assert await predict(app, "m") == b"said hello"
        assert site.left() == (["m.mar"], 1)


async def test_the_files_of_others_stay(site):
    """A file that another model was registered from by its name stays when the one from the URL goes."""
    async with testing.serve(site.content(ANY), workers="scripted") as app, web() as pages:
        pages.pages["/m.mar"] = answer(site.archive)
        await manage(app, "RegisterModel", url=pages.url("/m.mar"), model_name="first")
        await manage(app, "RegisterModel", url="m.mar", model_name="second")
        await manage(app, "UnregisterModel", model_name="first")
        assert site.left() == (["m.mar"], 1)
        await manage(app, "UnregisterModel", model_name="second")
        assert site.left() == (["m.mar"], 0)  # one from the store is the operator's


async def test_the_servers_end_keeps_files(site):
    """A server that drains leaves the files of models from URLs: the next one needs them."""
    async with web() as pages:
        pages.pages["/m.mar"] = answer(site.archive)
        async with testing.serve(site.content(pages.pattern()), workers="scripted") as app:
            await manage(app, "RegisterModel", url=pages.url("/m.mar"), model_name="m")
    assert site.left() == (["m.mar"], 0)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("max_archive_bytes", 50, "max_archive_bytes"),
        ("download_timeout_s", 0.1, "download_timeout_s"),
        ("download_stall_timeout_s", 0.1, "download_stall_timeout_s"),
    ],
)
async def test_limits_have_keys(site, key, value, text):
    """Each limit of a download is a key of the config, and the error names it."""

    async def silent(stream):
        await stream.send_all(answer(content_length=100 if key == "max_archive_bytes" else 10))
        await trio.sleep_forever()

    async with testing.serve(site.content(ANY, **{key: value}), workers="scripted") as app, web() as pages:
        pages.pages["/m.mar"] = silent
        await refused(app, Status.INVALID_ARGUMENT, text, url=pages.url("/m.mar"), model_name="m")


async def test_max_downloads(site):
    """`max_downloads` download at once."""

    async def page(stream):
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(answer(site.archive))

    async with testing.serve(site.content(ANY, max_downloads=1), workers="scripted") as app, web() as pages:
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                pages.pages[f"/{name}.mar"] = page

                async def register(name=name):
                    await manage(app, "RegisterModel", url=pages.url(f"/{name}.mar"), model_name=name)

                nursery.start_soon(register)
        assert (pages.most, len(pages.requests)) == (1, 3)
