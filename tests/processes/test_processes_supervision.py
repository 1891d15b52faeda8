"""Supervision with real processes: what is stopped, worn, corrupt or cancelled, and the tree in the log."""

# ruff: noqa: SIM300  # expected == actual

import json
import os
import signal
import threading
import time

import grpc
import pytest
from serving import HERE, code_of, wait_for

from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_pb2 import DescribeModelRequest
from actorserve.testing import is_alive


def table(name, handler, extra=""):
    return f'[models.{name}]\nhandler = "handlers_for_supervision:{handler}"\nsource = "{HERE}"\n{extra}\n'


def described(serving, model):
    """What DescribeModel says of a model and its first worker."""
    reply = serving.describes(DescribeModelRequest(model_name=model), timeout=10, wait_for_ready=True)
    (version,) = json.loads(reply.msg)
    return version["status"], version["workers"][0]


# --- limits -----------------------------------------------------------------------------------


def test_a_leaking_worker_is_replaced_without_losing_a_request(start):
    """A worker that leaks past max_worker_memory_mb is replaced while requests come: none fails, none is counted as a
    restart, and the old process ends.
    """
    serving = start(table("leaks", "Leaks", "max_worker_memory_mb = 150\nbatch_size = 4"))
    first = serving.ask("leaks", "x")
    pids, end = {first}, time.monotonic() + 60
    while len(pids) == 1 and time.monotonic() < end:
        calls = [serving.ask_later("leaks", "x") for _ in range(8)]
        pids |= {int(call.result().prediction) for call in calls}
    assert 2 == len(pids)
    wait_for(lambda: not is_alive(first), within=10)
    status, worker = described(serving, "leaks")
    assert ("READY", 0, 1) == (status, worker["restarts"], worker["replaced"])
    assert "Crashed" not in worker.get("lastExit", "")
    why = serving.logged(event="worker is to be replaced")["why"]
    assert "more than max_worker_memory_mb = 150" in why
    serving.close()


def test_requests_per_worker(start):
    """After max_requests_per_worker another process answers; of 300 requests none fails."""
    serving = start(table("leaks", "Leaks", "max_requests_per_worker = 60\nbatch_size = 2"))
    answers = []

    def ask():
        answers.extend(serving.ask("leaks", "x") for _ in range(75))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 300 == len(answers)
    wait_for(lambda: described(serving, "leaks")[1].get("replaced", 0) >= 2)
    assert len(set(answers)) >= 2
    assert 0 == described(serving, "leaks")[1]["restarts"]
    serving.close()


# --- hangs, corrupt weights ---------------------------------------------------------------------


def test_a_stopped_idle_worker_is_replaced(start):
    """A worker that is stopped while it has nothing to do is found by its pings, killed and replaced."""
    serving = start(table("leaks", "Leaks"))
    pid = serving.ask("leaks", "x")
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not is_alive(pid), within=40)
    assert pid != serving.ask("leaks", "x")
    assert "Crashed: no PONG within 10 s" == described(serving, "leaks")[1]["lastExit"]
    serving.close()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short", b"<html>404</html>"], ids=repr)
def test_corrupt_weights_are_failed_at_once(start, tmp_path, content):
    """Weights that are missing or corrupt: FAILED at the first attempt with the reason, and UNAVAILABLE at once."""
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    serving = start(table("weights", "Weights", f'options = {{ file = "{path}" }}') + table("good", "Leaks"))
    assert serving.ask("good", "x")
    wait_for(lambda: described(serving, "weights")[0] == "FAILED", within=20)
    status, worker = described(serving, "weights")
    assert ("FAILED", True, False) == (status, bool(worker["reason"]), "restarts" in worker)
    call = serving.ask_later("weights", "x")
    assert grpc.StatusCode.UNAVAILABLE is code_of(call)
    assert worker["reason"] in call.details()
    assert not [line for line in serving.log() if line["event"].startswith("worker died")]
    serving.close()


def test_warm_before_ready(start, tmp_path):
    """A worker is READY once its handler has answered its own samples, and FAILED at once where it cannot."""
    options = f'options = {{ notes = "{tmp_path}/%s", seconds = "%s" }}'
    models = [table(name, "Warms", options % (name, seconds)) for name, seconds in (("good", "0.5"), ("bad", "many"))]
    serving = start("".join(models))
    wait_for(lambda: described(serving, "good")[0] == "READY")
    assert "loaded\ninfer warmup\n" == (tmp_path / "good").read_text()
    wait_for(lambda: described(serving, "bad")[0] == "FAILED")
    assert "ValueError: could not convert string to float: b'many'" in described(serving, "bad")[1]["reason"]
    serving.close()


# --- SIGUSR1 ------------------------------------------------------------------------------------


def test_sigusr1_logs_the_tree(start, tmp_path):
    """SIGUSR1 writes the whole tree into the log, and the server goes on."""
    serving = start(
        table("leaks", "Leaks", "workers = { min = 2 }") + table("weights", "Weights", 'options = { file = "none.pt" }')
    )
    pids = wait_for(lambda: len(serving.workers("leaks")) == 2 and serving.workers("leaks"))
    wait_for(lambda: described(serving, "weights")[0] == "FAILED")
    serving.popen.send_signal(signal.SIGUSR1)
    text = wait_for(
        lambda: next((line["event"] for line in serving.log() if line["event"].startswith("supervision tree\n")), None)
    )
    assert "\n2 models, 2 workers READY\n" in text
    assert "\nleaks/1.0  READY  default  waiting 0 of 100\n" in text
    assert all(f"pid {pid}  incarnation 1  in hand 0" in text for pid in pids)
    assert "\nweights/1.0  FAILED  default" in text
    assert "last exit: Crashed: FileNotFoundError" in text
    assert serving.ask("leaks", "x") in pids
    serving.close()


# --- cancellation -------------------------------------------------------------------------------


class Noted:
    """A server whose handler notes what it does."""

    def __init__(self, start, tmp_path, handler, extra="batch_size = 4"):
        self.path = tmp_path / "notes"
        self.path.touch()
        self.serving = start(table("m", handler, f'options = {{ notes = "{self.path}" }}\n{extra}'))
        wait_for(lambda: "loaded" in self.notes())

    def notes(self):
        return self.path.read_text().splitlines()

    def stream(self, name, timeout=60.0, channel=None):
        """A stream that has begun: its call, with its request's id in the notes."""
        stub = self.serving.streams
        if channel is not None:
            stub = channel.unary_stream(
                "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions",
                PredictionsRequest.SerializeToString,
            )
        call = stub(
            PredictionsRequest(model_name="m", input={"data": b"x"}),
            timeout=timeout,
            metadata=(("x-request-id", name),),
        )
        next(call)
        return call


@pytest.mark.parametrize("handler", ["Generates", "Continuous"])
def test_what_ends_a_generation(start, tmp_path, handler):
    """Client cancel, deadline and a lost connection free a generator, or a member of a continuous batch, once, before
    its next step; its neighbours go on; shutdown ends the last with UNAVAILABLE when the grace is over.
    """
    noted = Noted(start, tmp_path, handler)
    neighbour = noted.stream("neighbour")
    cancelled = noted.stream("cancelled")
    cancelled.cancel()
    late = noted.stream("late", timeout=1.0)
    assert grpc.StatusCode.DEADLINE_EXCEEDED is late.code()
    channel = grpc.insecure_channel(f"127.0.0.1:{noted.serving.port}")
    noted.stream("lost", channel=channel)
    channel.close()
    for name in ("cancelled", "late", "lost"):
        wait_for(lambda name=name: f"freed {name}" in noted.notes())
    notes = noted.notes()
    for name in ("cancelled", "late", "lost"):
        assert 1 == notes.count(f"freed {name}")
        assert f"step {name}" not in notes[notes.index(f"freed {name}") :]
    next(neighbour)
    assert "freed neighbour" not in noted.notes()
    noted.serving.popen.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as error:
        for _ in neighbour:
            pass
    assert grpc.StatusCode.UNAVAILABLE is error.value.code()
    assert 0 == noted.serving.popen.wait(20)
