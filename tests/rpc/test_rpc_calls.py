"""A servicer's calls while they run: cancelled, expired, too many, too fast, and under a worker that dies or hangs."""

from contextlib import asynccontextmanager

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from rpc_rig import config

from actorserve import testing
from actorserve.actors.messages import Call, Cardinality

KINDS = ("Busy", "AsyncBusy")


@asynccontextmanager
async def serving(generated, target, **keys):
    """A server, the stub of its servicer, and the messages' module."""
    import diff_grpc  # noqa: PLC0415  # generated when the tests run
    import diff_pb2  # noqa: PLC0415

    with trio.fail_after(60):
        async with (
            testing.serve(config(generated, f"busy_servicer:{target}", **keys)) as app,
            app.channel("user") as channel,
        ):
            assert not app.failures
            yield app, diff_grpc.DiffStub(channel), diff_pb2


async def counted(stub, pb, name):
    """What the servicer has counted."""
    return (await stub.One(pb.Ask(case="count", data=name.encode()))).number


async def until(stub, pb, name, least):
    """Wait until it has counted so many."""
    while await counted(stub, pb, name) < least:
        await trio.sleep(0.01)


def in_hand(app):
    """How many calls the one replica has."""
    return sum(replica.in_hand for model in app.tree().models for replica in model.replicas)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_goes_is_noticed(generated, kind):
    """The servicer sees that its caller has gone, and the replica's place is free again."""
    async with serving(generated, kind, max_ongoing_requests=2) as (app, stub, pb):
        for turn in range(1, 4):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stub.One, pb.Ask(case="hold"))
                await until(stub, pb, "held", turn)
                nursery.cancel_scope.cancel()
            await until(stub, pb, "gone", turn)
        while in_hand(app):
            await trio.sleep(0.001)


@pytest.mark.parametrize("kind", KINDS)
async def test_deadline_ends_a_call(generated, kind):
    """DEADLINE_EXCEEDED while it runs, and in the queue: what waited never reaches the servicer."""
    async with serving(generated, kind, max_ongoing_requests=1) as (app, stub, pb):
        with pytest.raises(GRPCError) as running:
            await stub.One(pb.Ask(case="hold"), timeout=0.2)
        assert running.value.status is Status.DEADLINE_EXCEEDED
        while in_hand(app):
            await trio.sleep(0.001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stub.One, pb.Ask(case="hold"))
            while not in_hand(app):
                await trio.sleep(0.001)
            with pytest.raises(GRPCError) as queued:
                await stub.One(pb.Ask(case="release"), timeout=0.1)
            assert queued.value.status is Status.DEADLINE_EXCEEDED
            assert in_hand(app) == 1
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_no_more_calls_than_allowed(generated, kind):
    """A replica has max_ongoing_requests, max_queued_requests wait, one more is refused with RESOURCE_EXHAUSTED."""
    async with (
        serving(generated, kind, max_ongoing_requests=2, max_queued_requests=1) as (app, stub, pb),
        trio.open_nursery() as nursery,
    ):
        for expected in (1, 2):
            nursery.start_soon(stub.One, pb.Ask(case="hold"))
            while in_hand(app) < expected:
                await trio.sleep(0.001)
        nursery.start_soon(stub.One, pb.Ask(case="release"))
        while not app.tree().models[0].waiting:
            await trio.sleep(0.001)
        with pytest.raises(GRPCError) as refused:
            await stub.One(pb.Ask(case="release"))
        assert refused.value.status is Status.RESOURCE_EXHAUSTED
        assert in_hand(app) == 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_slow_reader_slows_its_generator(generated, kind):
    """A stream that nobody reads stands still, and is closed when its reader goes."""
    async with serving(generated, kind) as (_app, stub, pb):
        async with stub.Many.open() as stream:
            await stream.send_message(pb.Ask(count=10_000), end=True)
            await stream.recv_message()
            produced, same = 0, 0
            while same < 20:
                now = await counted(stub, pb, "produced")
                produced, same = now, same + 1 if now == produced else 0
            assert 16 <= produced < 200  # of 10 KB: what windows and credit hold
            await stream.cancel()
        await until(stub, pb, "closed", 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_slow_servicer_slows_its_client(generated, kind):
    """Messages that a servicer does not take wait at the client; all of them come."""
    async with serving(generated, kind) as (_app, stub, pb):
        sent = 0
        async with stub.Collect.open() as stream:

            async def send():
                nonlocal sent
                for number in range(500):
                    await stream.send_message(pb.Ask(data=bytes(10_000)), end=number == 499)
                    sent += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                before, same = 0, 0
                while same < 20:
                    await counted(stub, pb, "taken")
                    before, same = sent, same + 1 if sent == before and sent else 0
                assert sent < 200
                await stub.One(pb.Ask(case="release"))
            assert (await stream.recv_message()).number == 500


@pytest.mark.parametrize("kind", KINDS)
async def test_large_messages(generated, kind):
    """Five megabytes each way are no special case."""
    async with serving(generated, kind) as (_app, stub, pb), stub.Many.open() as stream:
        await stream.send_message(pb.Ask(count=5_000_000, data=bytes(5_000_000)), end=True)
        assert len((await stream.recv_message()).data) == 5_000_000
        assert len((await stream.recv_message()).data) == 5_000_000
        await stream.cancel()


async def test_a_replica_that_dies(generated):
    """Calls in its hand end with UNAVAILABLE; those that come meanwhile wait for the next and are answered."""
    async with serving(generated, "Busy") as (app, stub, pb):
        first = (await stub.One(pb.Ask(case="pid"))).number
        failed = []

        async def held():
            with pytest.raises(GRPCError) as error:
                await stub.One(pb.Ask(case="hold"))
            failed.append(error.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(held)
            while not in_hand(app):
                await trio.sleep(0.001)
            with pytest.raises(GRPCError) as died:
                await stub.One(pb.Ask(case="die"))
        assert [error.status for error in (*failed, died.value)] == [Status.UNAVAILABLE] * 2
        assert "it exited with status 7" in died.value.message
        assert (await stub.One(pb.Ask(case="pid"))).number != first


async def test_code_that_keeps_the_loop(generated):
    """A replica whose loop gets no turn answers PING all the same; past response_timeout_s it is killed."""
    async with serving(generated, "AsyncBusy", response_timeout_s=2.0) as (_app, stub, pb):
        assert (await stub.One(pb.Ask(case="block", count=1))).text == "block"
        with pytest.raises(GRPCError) as killed:
            await stub.One(pb.Ask(case="block", count=60))
        assert killed.value.status is Status.UNAVAILABLE
        assert "no answer within response_timeout_s = 2" in killed.value.message
        assert (await stub.One(pb.Ask(case="again"))).text == "again"


async def test_bytes_that_are_no_request(generated):
    """A request that does not decode has grpcio's own answers, and hurts nobody else."""
    from actorserve.services.servicers import Raw  # noqa: PLC0415  # bytes as a message

    for kind, status in (("Busy", Status.INTERNAL), ("AsyncBusy", Status.UNKNOWN)):
        async with serving(generated, kind) as (_app, stub, _pb):
            stub.One.request_type = Raw
            with pytest.raises(GRPCError) as wrong:
                await stub.One(Raw(b"\xff\xff"))
            assert wrong.value.status is status


async def test_what_grpcio_never_answers(generated):
    """`sys.exit` in a thread, and metadata that is neither text nor bytes: the call ends all the same."""
    async with serving(generated, "Busy") as (_app, stub, pb):
        for case, status, text in (
            ("exit", Status.UNKNOWN, "Exception calling application: SystemExit"),
            ("no-text", Status.INTERNAL, "trailing metadata cannot be sent: TypeError"),
        ):
            with pytest.raises(GRPCError) as error:
                await stub.One(pb.Ask(case=case))
            assert error.value.status is status
            assert text in error.value.message
        assert (await stub.One(pb.Ask(case="again"))).text == "again"


@pytest.mark.parametrize("target", ["blocking_servicer:Servicer", "busy_servicer:AsyncBusy", "grpclib_service:Service"])
async def test_calls_that_are_cancelled_as_they_begin(generated, target):
    """However early its caller goes, a call ends, and its place is free again."""
    with trio.fail_after(60):
        async with testing.serve(config(generated, target, max_ongoing_requests=8)) as app:
            mailbox = app.server.directory.find(target)
            for _ in range(100):
                exchanges = [mailbox.ask(Call("/diff.Diff/Collect", Cardinality.STREAM_UNARY, None)) for _ in range(8)]
                while mailbox.waiting:
                    await trio.lowlevel.checkpoint()
                for exchange in exchanges:
                    exchange.abandon()
            while in_hand(app):
                await trio.sleep(0.001)
