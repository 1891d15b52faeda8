"""The whole server, with scripted and with real workers."""

from actorserve import testing
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest

ECHO = {"models": {"echo": {"handler": "actorserve.handlers.echo:Echo"}}}


async def test_scripted(autojump_clock):
    """A scripted worker answers unary and streaming calls in virtual time."""
    async with testing.serve(ECHO, workers="scripted") as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)
        request = PredictionsRequest(model_name="echo", input={"data": b"hello", "count": b"40"})
        assert (await stub.Predictions(request)).prediction == b"hello"
        async with stub.StreamPredictions.open() as stream:
            await stream.send_message(request, end=True)
            assert [m.prediction async for m in stream] == [b"hello"] * 40


async def test_real():
    """A real worker answers unary and streaming calls; nothing is left afterwards."""
    async with testing.serve(ECHO) as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)
        request = PredictionsRequest(model_name="echo", input={"data": b"hello", "count": b"40"})
        assert (await stub.Predictions(request)).prediction == b"hello"
        async with stub.StreamPredictions.open() as stream:
            await stream.send_message(request, end=True)
            assert [m.prediction async for m in stream] == [b"hello"] * 40
