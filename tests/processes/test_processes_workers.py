"""Real workers behind a real server, called by grpcio: what one may do to itself, and what that costs the others."""

# ruff: noqa: SIM300  # expected == actual

import json
import os
import signal
import threading
import time
from collections import Counter

import grpc
import pytest
from serving import HERE, INFERENCE, SECRET, Serving, code_of, wait_for

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.testing import is_alive

TOOL = f'handler = "handlers_for_tests:Tool"\nsource = "{HERE}"\n'
MODELS = f"""
[models.tool]
{TOOL}response_timeout_s = 2
max_restarts = 20
[models.twins]
{TOOL}workers = {{ min = 2 }}
batch_size = 1
threads = 2
[models.load]
{TOOL}batch_size = 4
[models.echo]
handler = "actorserve.handlers.echo:Echo"
"""
CRASHED = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the module; it must outlive every test here."""
    serving = Serving(tmp_path_factory.mktemp("server"), MODELS)
    try:
        for model in ("tool", "load", "echo"):
            serving.ask(model)
        wait_for(lambda: len(serving.workers("twins")) == 2)
        yield serving
        serving.close()
    finally:
        serving.kill()


def fails(server, command, **given) -> grpc.RpcError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        server.ask("tool", command, **given)
    return raised.value


def test_a_worker_holds_its_own_descriptors_only(server):
    """Null, two pipes, its socket, and the listing's own."""
    assert [0, 1, 2, 3, 4] == server.ask("tool", "descriptors")


def test_a_worker_has_a_clean_environment(server):
    """What the server was given in secret is in neither copy of a worker's environment."""
    seen = server.ask("tool", "environment")

    assert SECRET not in str(seen)
    assert ("1", "false") == (seen["os"]["OMP_NUM_THREADS"], seen["os"]["TOKENIZERS_PARALLELISM"])


def test_a_worker_has_default_signals(server):
    """What the forkserver ignores, a worker does not."""
    assert {"SIG_DFL"} == set(server.ask("tool", "signals").values())


def test_two_workers_draw_different_numbers(server):
    """random, numpy and torch differ between two forks of one forkserver; compute threads are as configured."""

    def draw():
        calls = [server.ask_later("twins", "dice") for _ in range(4)]
        drawn = [json.loads(call.result().prediction) for call in calls]
        return drawn if len({pid for pid, *_ in drawn}) == 2 else None

    drawn = wait_for(draw)
    for numbers in zip(*(rest for _, *rest in drawn), strict=True):
        assert len(numbers) == len(set(numbers))
    assert 2 == server.ask("twins", "threads")


def test_what_a_handler_says_reaches_the_log(server):
    """stdout, stderr and logging come with the model and the worker; a faulty log call hurts nobody."""
    assert "said" == server.ask("tool", "say hello")
    who = {"model": "tool/1.0", "worker": 0}
    for line in (
        {"event": "out hello", "stream": "stdout", "level": "info"},
        {"event": "err hello", "stream": "stderr", "level": "info"},
        {"event": "log hello", "logger_name": "tool", "level": "warning"},
    ):
        assert server.logged(**line, **who)


def test_large_payloads_cross_both_ways(server):
    """5 MB to a worker and back, several at once and beside small ones, as unary answers and as a stream's message."""
    sent = [bytes([n]) + os.urandom(5_000_000 if n % 2 else 10) for n in range(6)]
    requests = [PredictionsRequest(model_name="echo", input={"data": data}) for data in sent]
    kinds = PredictionsRequest.SerializeToString, PredictionResponse.FromString
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.max_receive_message_length", -1)]) as channel:
        predict = channel.unary_unary(INFERENCE + "Predictions", *kinds)
        generate = channel.unary_stream(INFERENCE + "StreamPredictions", *kinds)
        answers = [predict.future(request, timeout=60) for request in requests]
        streams = [generate(request, timeout=60) for request in requests]

        assert sent == [answer.result().prediction for answer in answers]
        assert sent == [b"".join(message.prediction for message in stream) for stream in streams]


def test_a_flood_is_cut(server):
    """A handler that prints without end does not block, and the log says how much it left out."""
    assert "flooded" == server.ask("tool", "flood")
    server.ask("tool", "say after")
    wait_for(lambda: any("lines dropped" in str(line["event"]) for line in server.log()))
    assert 2000 > sum(str(line["event"]).startswith("line ") for line in server.log())


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("segfault", "SIGSEGV"),
        ("exit", "status 3"),
        ("sysexit", "status 1"),
        ("babble", "broke the protocol"),
        ("sleep 100", "response_timeout_s = 2"),
    ],
)
def test_a_death_costs_its_own_request_alone(server, command, text):
    """Its request is UNAVAILABLE and says why; the next is answered by a new worker, by itself."""
    before = server.workers("tool")
    error = fails(server, command)

    assert (CRASHED, True) == (error.code(), text in error.details())
    assert before != [server.ask("tool", "pid")]


@pytest.mark.parametrize(
    ("command", "text"), [("raise", "ZeroDivisionError: as told"), ("odd", "Odd"), ("deep", "TypeError")]
)
def test_an_exception_costs_no_worker(server, command, text):
    """What a handler raises, or an answer that cannot be encoded, is INTERNAL for its item; the worker stays."""
    before = server.ask("tool", "pid")
    error = fails(server, command)

    assert (grpc.StatusCode.INTERNAL, True, before) == (
        error.code(),
        text in error.details(),
        server.ask("tool", "pid"),
    )


def test_bad_input_fails_its_item_alone(server):
    """One item of a batch is INVALID_ARGUMENT, its neighbours are answered."""
    server.ask_later("load", "sleep 0.3")
    time.sleep(0.1)
    calls = [server.ask_later("load", command) for command in ("json", "bad", "json", "bad")]

    assert [grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT] * 2 == [code_of(call) for call in calls]


def test_inputs_of_any_shape(server):
    """70,000 inputs, or a key of 70,000 letters, are answered: they used to be more than a frame could say."""
    for extra in ({"k" * 70_000: b"v"}, {str(n): b"" for n in range(70_000)}):
        reply = server.predictions(PredictionsRequest(model_name="echo", input={"data": b"x", **extra}), timeout=20)
        assert b"x" == reply.prediction


def test_a_deadline_in_the_queue_never_reaches_the_handler(server):
    """A call whose deadline passes while it waits is DEADLINE_EXCEEDED, and its command is never run."""
    busy = server.ask_later("load", "sleep 1")
    time.sleep(0.1)
    late = server.ask_later("load", "say never", timeout=0.3)

    assert (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK) == (code_of(late), code_of(busy))
    server.ask("load")
    assert not any("never" in str(line["event"]) for line in server.log() if line.get("model") == "load/1.0")


def test_who_goes_away_stops_the_generator(server):
    """A client that leaves mid-stream: the generator makes at most one more step."""
    stream = server.stream("load", count="1000", pause="0.05")
    for _ in range(4):
        next(stream)
    stream.cancel()
    time.sleep(0.3)
    steps = server.ask("load", "steps")
    time.sleep(0.3)

    assert steps <= 4 + 3  # a chunk or two on the way, and the step that was running
    assert steps == server.ask("load", "steps")


def test_a_slow_reader_slows_its_own_generator(server):
    """An unread stream stops by credit and flow control, and others are answered meanwhile."""
    slow = server.stream("load", count="100000")
    next(slow)
    time.sleep(0.2)
    assert {"a": 1} == server.ask("load", timeout=5)
    slow.cancel()


def test_grandchildren_end_with_their_worker(server):
    """What a handler started is killed with its worker's process group."""
    child = server.ask("tool", "child")
    assert is_alive(child)
    fails(server, "exit")
    wait_for(lambda: not is_alive(child), within=5)


def test_a_grandchild_that_holds_the_socket(server):
    """A worker's death is noticed within seconds even where a daemon that it forked keeps its socket open."""
    server.ask("tool", "orphan")
    began = time.monotonic()
    assert CRASHED is fails(server, "exit").code()
    assert time.monotonic() - began < 5
    assert server.ask("tool")


def test_kill_under_load(server):
    """Kill -9 with 32 calls at a time: each call ends once and within its deadline + 1 s, and the model comes back."""
    timeout, endings, late = 5.0, Counter(), []
    enough = time.monotonic() + 4
    lock = threading.Lock()

    def client():
        while time.monotonic() < enough:
            began = time.monotonic()
            code = code_of(server.ask_later("load", "sleep 0.01", timeout=timeout))
            took = time.monotonic() - began
            with lock:
                endings[code] += 1
                if took > timeout + 1:
                    late.append(took)

    clients = [threading.Thread(target=client) for _ in range(32)]
    for one in clients:
        one.start()
    killed = []
    for _ in range(3):
        time.sleep(0.8)
        pids = wait_for(lambda: [pid for pid in server.workers("load") if pid not in killed])
        os.kill(pids[0], signal.SIGKILL)
        killed.append(pids[0])
    for one in clients:
        one.join()

    assert [] == late
    assert {grpc.StatusCode.OK, CRASHED} == set(endings)
    assert endings[grpc.StatusCode.OK] > endings[CRASHED]
    assert 3 * 8 >= endings[CRASHED]
    assert {"a": 1} == server.ask("load")
    assert killed[-1] not in server.workers("load")


def test_a_stopped_worker_is_killed(server):
    """SIGSTOP: no PONG for 10 s, then it is killed; what it had begun fails, what it had not is answered by the next.

    The one test here that takes so long.
    """
    (pid,) = server.workers("load")
    begun = server.ask_later("load", "sleep 60")
    time.sleep(0.2)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    ahead = [server.ask_later("load", "pid") for _ in range(4)]
    assert CRASHED is code_of(begun)
    assert 8 < time.monotonic() - began < 16
    assert [grpc.StatusCode.OK] * 4 == [code_of(call) for call in ahead]
    assert str(pid).encode() not in {call.result().prediction for call in ahead}


def test_forkserver_killed(server):
    """Kill -9 of the forkserver ends its workers; a new one comes, and every model answers again."""
    forkserver, workers = server.forkserver(), server.workers("twins") + server.workers("load")
    os.kill(forkserver, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, [forkserver, *workers])), within=5)
    for model in ("twins", "load", "tool", "echo"):
        assert server.ask(model)
    assert forkserver != server.forkserver()
