"""The metadata that Ray Serve knows: what reaches a method, what goes on to other deployments, what comes back."""

import json

import grpc
import pytest
import trio
from test_serve_calls import APPS, Message, config, running
from test_serve_run import begin

from actorserve import testing
from actorserve.serve.generated import serve_pb2_grpc

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GIVEN = {"request_id": "r1", "traceparent": TRACE, "session_id": "s1", "multiplexed_model_id": "m1"}
MINE = (("request_id", "mine"),)


async def test_keys_in():
    """grpc_context and the request have all four keys, and tracestate; below arrive all but the model's id."""
    async with running() as (_, client):
        metadata = (*GIVEN.items(), ("tracestate", "vendor=1"))
        reply, trailers = await client.do("keys", metadata=metadata)
        assert json.loads(reply.greeting) == [list(GIVEN.values()), "vendor=1", ["r1", TRACE, "s1", ""]]
        assert trailers["request_id"] == "r1"


async def test_no_keys():
    """Of a client that says nothing, there is an id that was made, the same everywhere, and nothing else."""
    async with running() as (_, client):
        reply, trailers = await client.do("keys")
        here, state, below = json.loads(reply.greeting)
        assert here == below == [trailers["request_id"], "", "", ""]
        assert state is None
        assert len(trailers["request_id"]) == 32


async def test_a_session_of_the_handles_own():
    """`options(session_id=...)` wins over the request's."""
    async with running() as (_, client):
        reply, _ = await client.do("keys", "other", metadata=tuple(GIVEN.items()))
        assert json.loads(reply.greeting)[2] == ["r1", TRACE, "other", ""]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("raise", "INTERNAL"),
        ("code", "NOT_FOUND"),
        ("code_and_raise", "RESOURCE_EXHAUSTED"),
        ("downstream", "INTERNAL"),
        ("own_cancel", "INTERNAL"),
        ("let_die", "UNAVAILABLE"),
    ],
)
async def test_the_id_of_a_call_that_fails(what, code):
    """The client's request_id is in the trailers once, whatever the method did."""
    async with running() as (_, client):
        with pytest.raises(grpc.RpcError) as caught:
            await client.do(what, metadata=MINE)
        assert caught.value.code().name == code
        assert [value for key, value in caught.value.trailing_metadata() if key == "request_id"] == ["mine"]


async def test_the_id_where_no_method_was_asked():
    """It comes back, too, of a call that is late, that finds a full queue, that cannot be read or is nobody's."""
    deployments = {"Front": {"max_ongoing_requests": 1, "max_queued_requests": 1}}
    settings = config(deployments=deployments)
    settings["listeners"]["grpc"]["request_timeout_s"] = 2.0
    async with testing.serve(settings) as app:

        def ends(method, messages):
            """Codes and ids of calls that are made at the same time."""
            with grpc.insecure_channel(app.address("grpc")) as channel:
                ask = channel.unary_unary(f"/ray.serve.UserDefinedService/{method}")
                calls = [ask.future(message, metadata=MINE, timeout=60) for message in messages]
                return [(call.code().name, dict(call.trailing_metadata()).get("request_id")) for call in calls]

        sleep = Message(foo="sleep", num=60).SerializeToString()
        for method, messages, codes in (
            ("Method1", [b"\xff\xff"], {"INVALID_ARGUMENT"}),
            ("Method2", [b""], {"UNIMPLEMENTED"}),
            ("__call__", [sleep] * 4, {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}),
        ):
            found = await trio.to_thread.run_sync(ends, method, messages)
            assert {code for code, _ in found} == codes
            assert {id for _, id in found} == {"mine"}


async def test_the_id_of_streams():
    """A stream has it after its items, with none at all, and when it fails."""
    application = {"import_path": "ops:app", "path": [APPS]}
    async with testing.serve(config(ops=application)) as app:

        def ask():
            with grpc.insecure_channel(app.address("grpc")) as channel:
                stub = serve_pb2_grpc.UserDefinedServiceStub(channel)
                for count in (3, 0):
                    call = stub.Streaming(Message(num=count), metadata=MINE, timeout=20)
                    assert len(list(call)) == count
                    assert dict(call.trailing_metadata())["request_id"] == "mine"
                call = stub.Streaming(Message(num=2, foo="break"), metadata=MINE, timeout=20)
                assert next(call).greeting == "0"
                with pytest.raises(grpc.RpcError):
                    list(call)
                assert (call.code().name, call.details()) == ("INTERNAL", "ValueError: broken")
                assert dict(call.trailing_metadata())["request_id"] == "mine"

        await trio.to_thread.run_sync(ask)


def test_keys_of_a_script():
    """A script's handle names model and session of its calls; each has an id that was made."""
    process = begin(
        "-c",
        """
from ops import Leaf
from actorserve import serve
handle = serve.run(Leaf.bind()).options(session_id="s1")
for options in ({"multiplexed_model_id": "m1"}, {"session_id": "s2"}):
    id, *others = handle.options(**options).keys.remote().result(timeout_s=20)
    print(len(id), others)
serve.shutdown()
""",
        folder=APPS,
    )
    out, err = process.communicate(timeout=60)
    assert out.splitlines() == ["32 ['', 's1', 'm1']", "32 ['', 's2', '']"], err
