"""Archives that cannot be registered, through a listener with `compatibility = "torchserve"`: its codes and texts.

TorchServe registers what is no archive at all where `model_name` is given; that is a fault, and refused here.
"""

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from packing import make_zip, manifest, zip_member

from actorserve import testing
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import DescribeModelRequest, RegisterModelRequest

SAVED = "Failed to save model: m.mar\norg.pytorch.serve.http.InternalServerException"
INVALID = "\norg.pytorch.serve.archive.model.InvalidModelException"


def good(path):
    """An archive without a name in its manifest."""
    make_zip(path, {"MAR-INF/MANIFEST.json": manifest(handler="h.py"), "h.py": b"handle = None\n"})


def cut(path):
    """A zip that was cut short."""
    good(path)
    path.write_bytes(path.read_bytes()[:-30])


ARCHIVES = [
    (lambda path: path.write_bytes(b"garbage"), {"model_name": "m"}, Status.INTERNAL, SAVED),
    (lambda path: path.write_bytes(b""), {}, Status.INTERNAL, SAVED),
    (cut, {}, Status.INTERNAL, SAVED),
    (lambda path: zip_member(path, "../up"), {}, Status.INTERNAL, SAVED),
    (lambda path: make_zip(path, {"MAR-INF/MANIFEST.json": b"{"}), {}, Status.INVALID_ARGUMENT,
     "Failed to parse signature.json." + INVALID),
    (good, {}, Status.INVALID_ARGUMENT, "Model name is not defined." + INVALID),
]  # fmt: skip


def serve(tmp_path):
    """A server with an empty store, and one listener as TorchServe's."""
    (tmp_path / "store").mkdir()
    listener = {"address": "127.0.0.1:0", "services": ["management"], "compatibility": "torchserve"}
    server = {"model_store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"), "state_dir": ""}
    return testing.serve({"server": server, "listeners": {"management": listener}}, workers="scripted")


async def test_an_archive_outside_of_the_store(tmp_path):
    """By its path, and by a link that leads there: it is not found, as what is not there."""
    good(tmp_path / "m.mar")
    async with serve(tmp_path) as app, app.channel("management") as channel:
        (tmp_path / "store" / "link.mar").symlink_to(tmp_path / "m.mar")
        for url in (str(tmp_path / "m.mar"), "link.mar"):
            with pytest.raises(GRPCError) as error:
                await ManagementAPIsServiceStub(channel).RegisterModel(RegisterModelRequest(url=url, model_name="m"))
            text = f"Model not found at: {url}\norg.pytorch.serve.archive.model.ModelNotFoundException"
            assert (error.value.status, error.value.message) == (Status.NOT_FOUND, text)


@pytest.mark.parametrize(("write", "fields", "status", "text"), ARCHIVES)
async def test_bad_archive(tmp_path, write, fields, status, text):
    """Each kind of bad archive has TorchServe's code and text, and leaves nothing behind."""
    async with serve(tmp_path) as app, app.channel("management") as channel:
        write(tmp_path / "store" / "m.mar")
        with pytest.raises(GRPCError) as error:
            await ManagementAPIsServiceStub(channel).RegisterModel(RegisterModelRequest(url="m.mar", **fields))
        assert (error.value.status, error.value.message) == (status, text)
        assert app.tree().models == ()
        assert not list((tmp_path / "cache").glob("archives/*/*"))


async def test_runtime(tmp_path):
    """The request's runtime wins over the manifest's, and DescribeModel shows it."""
    async with serve(tmp_path) as app, app.channel("management") as channel:
        good(tmp_path / "store" / "m.mar")
        stub = ManagementAPIsServiceStub(channel)
        for name, runtime, shown in (("a", "", "python"), ("b", "python3", "python3")):
            await stub.RegisterModel(RegisterModelRequest(url="m.mar", model_name=name, runtime=runtime))
            text = (await stub.DescribeModel(DescribeModelRequest(model_name=name))).msg
            assert f'"runtime": "{shown}",' in text
            assert '"batchSize": 1,\n    "maxBatchDelay": 100,' in text


STATEFUL = """
heard = {}


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        id, word = context.get_sequence_id(index), row["data"].decode()
        heard.setdefault(id, []).append(word)
        if word == "refuse":
            context.set_response_status(404, "not here", index)
        answers.append(f"{id}: {' '.join(heard[id])}")
    return answers
"""


async def test_stateful_archive(tmp_path):
    """An archive with `sequenceBatching` has sequences: each stays in its worker, in order, and knows its id; an item
    that the handler refuses is told in-band, and the sequence goes on.
    """
    (tmp_path / "store").mkdir()
    common = {"address": "127.0.0.1:0", "compatibility": "torchserve"}
    config = {
        "server": {"model_store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"), "state_dir": ""},
        "listeners": {"all": {**common, "services": ["inference", "management"]}},
    }
    yaml = b"sequenceBatching: true\nsequenceMaxIdleMSec: 60000\nmaxNumSequence: 4\nbatchSize: 2\n"
    members = {
        "MAR-INF/MANIFEST.json": manifest(modelName="talk", handler="h.py", configFile="c.yaml"),
        "c.yaml": yaml,
        "h.py": STATEFUL.encode(),
    }
    make_zip(tmp_path / "store" / "talk.mar", members)
    async with testing.serve(config) as app, app.channel("all") as channel:
        register = RegisterModelRequest(url="talk.mar", initial_workers=2, synchronous=True)
        await ManagementAPIsServiceStub(channel).RegisterModel(register)
        async with InferenceAPIsServiceStub(channel).StreamPredictions2.open() as stream:

            async def ask(id, word):
                request = PredictionsRequest(model_name="talk", input={"data": word.encode()}, sequence_id=id)
                await stream.send_message(request)
                reply = await stream.recv_message()
                assert reply.sequence_id == id
                return (reply.status.code, reply.status.message) if reply.HasField("status") else reply.prediction

            for number, word in enumerate(("one", "two", "three"), 1):
                for id in ("a", "b", "c"):
                    words = ("one", "two", "three")[:number]
                    assert await ask(id, word) == f"{id}: {' '.join(words)}".encode()
            assert await ask("a", "refuse") == (Status.NOT_FOUND.value, "not here")
            assert await ask("a", "four") == b"a: one two three refuse four"
            await stream.end()
            assert await stream.recv_message() is None
