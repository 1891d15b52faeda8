"""`isolation = "thread"`: handlers in threads of the server's own process."""

# ruff: noqa: SIM300  # expected == actual

import json
import os
import signal
import threading

import grpc
import pytest
import trio
import trio.testing
from serving import HERE, Serving, code_of

from actorserve import testing
from actorserve.actors.device import Gpu, Ledger
from actorserve.actors.directory import Directory
from actorserve.actors.messages import Infer, ModelSpec, Spawn, State, Stop
from actorserve.actors.model_actor import ActorSettings
from actorserve.actors.supervisor import Supervisor
from actorserve.actors.thread_worker import ThreadSpawner
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest

TOOL = {"handler": "handlers_for_tests:Tool", "source": str(HERE)}


def config(**keys):
    return {"models": {"tool": {**TOOL, **keys}, "echo": {"handler": "actorserve.handlers.echo:Echo"}}}


async def ask(app, command, model="tool"):
    """One answer, as text or JSON."""
    async with app.channel() as channel:
        request = PredictionsRequest(model_name=model, input={"data": command.encode()})
        reply = await InferenceAPIsServiceStub(channel).Predictions(request, timeout=20)
    try:
        return json.loads(reply.prediction)
    except ValueError:
        return reply.prediction.decode()


def replica(app, model="tool"):
    """A model's first replica as the tree shows it."""
    (view,) = [view for view in app.tree().models if view.spec.name == model]
    return view.replicas[0]


async def until(condition):
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.02)


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("worker tool")]


async def test_a_handler_in_a_thread():
    """It answers from a thread of this process, streams, and ends with the block; no process is started."""
    async with testing.serve(config(), workers="thread") as app:
        assert [os.getpid(), "worker tool/1.0#0"] == await ask(app, "thread")
        assert "hello" == await ask(app, "hello", model="echo")
        assert not testing.descendants(os.getpid())
    await until(lambda: not worker_threads())


async def test_a_stream_from_a_thread():
    """Chunks come as they are made; a client that leaves ends the generator."""
    async with testing.serve(config(), workers="thread") as app, app.channel() as channel:
        stub = InferenceAPIsServiceStub(channel)
        request = PredictionsRequest(model_name="tool", input={"count": b"3"})
        assert [b"0", b"1", b"2"] == [part.prediction for part in await stub.StreamPredictions(request)]


async def test_what_a_handler_leaves_ends_its_thread_alone():
    """sys.exit in a handler ends its thread, not the server; the model comes back, and so does a killed one."""
    async with testing.serve(config(), workers="thread") as app:
        with pytest.raises(Exception, match="died"):
            await ask(app, "sysexit")
        assert await ask(app, "thread")
        before = replica(app).incarnation
        assert os.getpid() == app.kill_worker("tool")
        await until(lambda: replica(app).incarnation > before and replica(app).state is State.READY)
        assert await ask(app, "thread")


async def test_a_load_that_fails():
    """What no restart can mend is FAILED with its reason, as in a process."""
    async with testing.serve(config(handler="handlers_for_tests:Nothing"), workers="thread") as app:
        assert "has no Nothing" in replica(app).reason
        assert State.FAILED is replica(app).state


async def test_a_thread_that_hangs_is_given_up():
    """response_timeout passes: FAILED at once and not restarted, with the reason; others are answered."""
    async with testing.serve(config(response_timeout_s=1), workers="thread") as app:
        with pytest.raises(Exception, match="cannot be killed"):
            await ask(app, "sleep 5")
        await until(lambda: replica(app).state is State.FAILED)
        assert "response_timeout_s = 1" in replica(app).reason
        assert 1 == replica(app).incarnation
        assert 1 == len(worker_threads())
        assert "hello" == await ask(app, "hello", model="echo")
        await until(lambda: not worker_threads())  # its handler has returned: the thread ends by itself
        assert State.FAILED is replica(app).state


async def test_a_thread_is_told_the_real_device(tmp_path, monkeypatch):
    """No environment narrows what a thread sees, so its GPU is not cuda:0 but the one that it was given, counted as
    the ledger counts. What runs no more is forgotten.
    """
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    threads, directory = ThreadSpawner(), Directory()
    ledger = Ledger([Gpu("GPU-a"), Gpu("GPU-b")])
    supervisor = Supervisor(ActorSettings(threads, tmp_path), directory, ledger=ledger)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        spec = ModelSpec("m", "1", "handlers_for_tests:Placed", HERE, devices=("cuda:1",))
        await supervisor.ask(Spawn(spec)).wait()
        answer = await directory.find("m").ask(Infer({})).wait()
        assert ["cuda:1", "PCI_BUS_ID"] == json.loads(answer.data)
        assert ["m/1#0"] == list(threads.living)
        await supervisor.ask(Stop("m", "1", 10)).wait()
        assert not threads.living
        nursery.cancel_scope.cancel()


async def test_threads_under_a_mock_clock(autojump_clock):
    """Threads are real, so they are refused where time is not."""
    with pytest.raises(RuntimeError, match="scripted"):
        async with testing.serve(config(), workers="thread"):
            pass


@pytest.fixture
def server(tmp_path):
    """One model in a thread, one in a process."""
    models = "".join(
        f'[models.{name}]\nhandler = "handlers_for_tests:Tool"\nsource = "{HERE}"\nisolation = "{name}"\n'
        for name in ("thread", "process")
    )
    serving = Serving(tmp_path, models)
    try:
        yield serving
        if serving.popen.poll() is None:
            serving.close()
    finally:
        serving.kill()


def test_threads_and_processes_beside_each_other(server):
    """Each model runs where it says; that one runs in a thread is logged once; its log lines have its name."""
    assert server.popen.pid == server.ask("thread", "thread")[0]
    assert server.popen.pid != server.ask("process", "thread")[0]
    said = [line for line in server.log() if "runs in a thread of the server" in str(line["event"])]
    assert ["thread/1.0"] == [line["model"] for line in said]
    assert "said" == server.ask("thread", "say hello")
    assert server.logged(event="log hello", model="thread/1.0", worker=0, level="warning")
    assert "said" == server.ask("process", "say there")
    assert server.logged(event="log there", model="process/1.0", worker=0)


def test_a_server_ends_although_a_thread_hangs(server):
    """A drain that finds a thread in its handler gives it its grace, says so, and ends with status 0."""
    server.ask("thread")
    late = server.ask_later("thread", "sleep 600")
    server.ask_later("thread", "json", timeout=0.3).exception()  # it has waited behind the other
    server.popen.send_signal(signal.SIGTERM)
    assert grpc.StatusCode.UNAVAILABLE is code_of(late)
    assert 0 == server.popen.wait(20)
    assert server.logged(event="a worker's thread hangs and cannot be killed")
