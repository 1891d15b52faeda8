"""A handler in TorchServe's style behind a listener that answers as TorchServe: described, refused, and by itself."""

import json

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actorserve import testing
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_grpc import ManagementAPIsServiceStub
from actorserve.proto.management_pb2 import DescribeModelRequest

HANDLER = """
def handle(data, context):
    if data is None:
        return None
    for header in ("describe", "explain"):
        if context.get_request_header(0, header) == "True":
            return [{header: len(data)}]
    word = data[0]["data"].decode()
    if word == "raise":
        raise KeyError("a word")
    if word == "dictionary":
        return {}
    for index in range(len(data)):
        if word == "status":
            context.set_response_status(403, "members only", index)
    return [f"{word} {len(data)}"] * len(data)
"""


def config(folder, batch_size):
    """The handler behind both listeners of TorchServe, and one that is not compatible."""
    (folder / "handler.py").write_text(HANDLER)
    listener = {"address": "127.0.0.1:0", "services": ["inference", "management"]}
    model = {
        "handler": "actorserve.handlers.torchserve.loader:TorchServeHandler",
        "source": str(folder),
        "batch_size": batch_size,
        "max_batch_delay_ms": 600_000,
        "options": {"torchserve": {"handler": "handler.py"}},
    }
    return {
        "server": {"state_dir": ""},
        "listeners": {"theirs": {**listener, "compatibility": "torchserve"}, "ours": listener},
        "models": {"m": model},
    }


async def predict(channel, word, **metadata):
    """One prediction, as text."""
    request = PredictionsRequest(model_name="m", input={"data": word.encode()})
    answer = await InferenceAPIsServiceStub(channel).Predictions(request, metadata=metadata)
    return answer.prediction.decode()


async def describe(channel):
    """What the handler says of itself."""
    request = DescribeModelRequest(model_name="m", customized=True)
    (body,) = json.loads((await ManagementAPIsServiceStub(channel).DescribeModel(request)).msg)
    return body["customizedMetadata"]


async def test_what_asks_for_something_else_has_a_call_of_its_own(tmp_path):
    """A description, or a client's own header that asks for one, shares a batch with others and disturbs none."""
    async with testing.serve(config(tmp_path, 5)) as app, app.channel("theirs") as channel:
        answers = {}

        async def ask(name, call, *args, **more):
            answers[name] = await call(channel, *args, **more)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ask, number, predict, "a")
            nursery.start_soon(ask, "description", describe)

            async def explained():
                await ask("explanation", predict, "a", explain="True")

            nursery.start_soon(explained)
        assert answers.pop("description") == {"describe": 1}
        assert json.loads(answers.pop("explanation")) == {"explain": 1}
        assert set(answers.values()) == {"a 3"}


async def test_the_two_tables(tmp_path):
    """The same handler behind both: a status that it sets is an answer there and a refusal here; errors differ."""
    kind = "\norg.pytorch.serve.http.InternalServerException"
    async with (
        testing.serve(config(tmp_path, 1)) as app,
        app.channel("theirs") as theirs,
        app.channel("ours") as ours,
    ):
        assert await predict(theirs, "status") == "status 1"
        for channel, word, status, text in (
            (ours, "status", Status.PERMISSION_DENIED, "members only"),
            (theirs, "raise", Status.UNAVAILABLE, "Prediction failed" + kind),
            (ours, "raise", Status.INTERNAL, "KeyError: 'a word'"),
            (theirs, "dictionary", Status.UNAVAILABLE, "Invalid model predict output" + kind),
            (ours, "dictionary", Status.INTERNAL, "TypeError: Invalid model predict output"),
        ):
            with pytest.raises(GRPCError) as error:
                await predict(channel, word)
            assert (error.value.status, error.value.message) == (status, text)
