"""The command line from outside: a real process, its screen, its signals, its exit codes, its log."""

import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import grpc
import pytest
import trio
import trio.testing
from running import PATIENCE_S, configured, ping, predict, running

from actorserve import config, testing
from actorserve.console import Console

ECHO = '[models.echo]\nhandler = "actorserve.handlers.echo:Echo"\n'
GATE = '[models.gate]\nhandler = "mine:Gate"\noptions = {{ {} }}\n'


def fifo(folder: Path, name: str) -> str:
    """A FIFO: who opens it for reading waits until somebody opens it for writing."""
    path = folder / name
    os.mkfifo(path)
    return f'{name} = "{path}"'


def open_gate(folder: Path, name: str) -> None:
    """Let the handler go on; waits until it is there."""
    (folder / name).write_text("go")


def test_first_line_screen_and_ping_while_loading(tmp_path):
    """The first line says where calls are taken, before any model is ready: Ping answers Unhealthy from then on,
    Healthy once they are; progress is shown until one screen names listener, model, state, device and a call to try.
    """
    config = configured(tmp_path, ECHO + GATE.format(fifo(tmp_path, "load")))
    with running(config, folder=tmp_path) as server, grpc.insecure_channel(server.address()) as channel:
        assert json.loads(ping(channel)) == {"status": "Unhealthy"}
        server.wait_for(r"1 of 2 models ready after \d+\.\d s, loading gate\n")
        assert "is ready" not in server.text()
        open_gate(tmp_path, "load")
        server.wait_ready()
        assert json.loads(ping(channel)) == {"status": "Healthy"}
        address = server.address()
        server.process.send_signal(signal.SIGINT)
        assert server.wait_end() == 0
    screen = server.text()
    assert re.match(r"actorserve \d+\.\d+\.\d+: inference, management on 127\.0\.0\.1:\d+\n", screen)
    assert re.search(rf"inference +{address} +inference management\n", screen)
    assert re.search(r"echo +1\.0 +READY +1/1 +cpu +32 +actorserve\.handlers\.echo:Echo\n", screen)
    assert re.search(r"gate +1\.0 +READY +1/1 +cpu +32 +mine:Gate\n", screen)
    assert f'InferenceAPIsService/Predictions on {address} with model_name = "echo".' in screen
    assert screen.endswith("SIGINT: draining, up to 30 s; again to kill\ndrained, good bye\n")


def test_sigterm_drains(tmp_path):
    """SIGTERM lets a running request finish: it gets its answer, new connections are refused, the exit code is 0."""
    gates = ", ".join((fifo(tmp_path, "started"), fifo(tmp_path, "infer")))
    config = configured(tmp_path, GATE.format(gates))
    with running(config, folder=tmp_path) as server, grpc.insecure_channel(server.address()) as channel:
        server.wait_ready()
        answer = predict(channel, "gate")
        (tmp_path / "started").read_text()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("SIGTERM: draining, up to 30 s; again to kill\n")
        server.wait_for('"event": "draining"', "err")
        open_gate(tmp_path, "infer")
        assert answer.result().prediction == b"hello"
        assert server.wait_end() == 0
        with pytest.raises(grpc.RpcError) as error:
            predict(channel, "gate").result()
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_kills(tmp_path, number):
    """A second signal ends the server although a request hangs: exit code 130, and no worker is left."""
    gates = ", ".join((fifo(tmp_path, "started"), fifo(tmp_path, "infer")))
    config = configured(tmp_path, GATE.format(gates))
    with running(config, folder=tmp_path) as server, grpc.insecure_channel(server.address()) as channel:
        server.wait_ready()
        answer = predict(channel, "gate")
        (tmp_path / "started").read_text()
        family = testing.descendants(server.process.pid)
        assert family
        server.process.send_signal(number)
        server.wait_for("again to kill")
        server.process.send_signal(number)
        assert server.wait_end() == 130
        assert server.text().endswith("killed by a second signal\n")
        assert isinstance(answer.exception(), grpc.RpcError)
        assert not [pid for pid in family if testing.is_alive(pid)]
        assert "Traceback" not in server.text("err")


def test_port_in_use(tmp_path):
    """A port in use is one clear line and exit code 1; what the line proposes works."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        override = f"--set=listeners.management.address=127.0.0.1:{port}"
        with running("--set=listeners.inference.address=127.0.0.1:0", override, folder=tmp_path) as server:
            assert server.wait_end() == 1
    assert server.text() == ""
    assert server.text("err") == (
        f"actorserve: listeners.management.address: cannot listen on 127.0.0.1:{port}: "
        f"port {port} is in use; choose another with --set listeners.management.address=127.0.0.1:PORT\n"
    )


def test_address_that_is_not_ours(tmp_path):
    """An address that this machine does not have is one clear line and exit code 1."""
    config = configured(tmp_path, ECHO)
    place = "--set=listeners.inference.address=192.0.2.1:7070"
    with running(config, place, "--set=listeners.inference.insecure=true", folder=tmp_path) as server:
        assert server.wait_end() == 1
    (line,) = server.lines["err"]
    assert line.startswith("actorserve: listeners.inference.address: cannot listen on 192.0.2.1:7070: ")


FAILING = """
[models.nomodule]
handler = "no_such_module:Model"
[models.noclass]
handler = "mine:NoSuchClass"
[models.noinfer]
handler = "mine:Nothing"
[models.noweights]
handler = "mine:NoWeights"
[models.twolines]
handler = "mine:TwoLines"
[models.needs]
handler = "mine:Needs"
[models.badoption]
handler = "actorserve.handlers.echo:Echo"
options = { dealy_s = 3 }
"""
REASONS = {
    "nomodule": "handler 'no_such_module:Model' cannot be imported: No module named 'no_such_module'",
    "noclass": "handler 'mine:NoSuchClass': module mine has no NoSuchClass",
    "noinfer": "handler 'mine:Nothing' has none of infer, generate, prefill + step + release, or open + feed + release",
    "noweights": "FileNotFoundError: [Errno 2] No such file or directory: '{folder}/weights.safetensors'",
    "twolines": "ValueError: the first line the second line",
    "needs": "TypeError: Needs.__init__() missing 1 required positional argument: 'something'",
    "badoption": "options.dealy_s: unknown option; this handler takes delay_s",
}


def test_models_that_cannot_load(tmp_path):
    """Each model that cannot load is one clear line on stderr and in the screen, never a traceback; the rest serves."""
    config = configured(tmp_path, ECHO + FAILING)
    with running(config, folder=tmp_path) as server, grpc.insecure_channel(server.address()) as channel:
        server.wait_ready()
        assert predict(channel, "echo").result().prediction == b"hello"
        with pytest.raises(grpc.RpcError) as error:
            predict(channel, "noclass").result()
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert REASONS["noclass"] in error.value.details()
        server.process.send_signal(signal.SIGINT)
        assert server.wait_end() == 0
    assert "serves 1 of 8 models; 7 FAILED, see below\n" in server.text()
    for name, reason in REASONS.items():
        text = reason.format(folder=tmp_path)
        assert f"actorserve: models.{name}: {text}\n" in server.lines["err"]
        assert f"  {name}: {text}\n" in server.lines["out"]
    assert "Traceback" not in server.text("err") + server.text()


def test_no_model_can_load(tmp_path):
    """If no model at all can load the server ends: a line for each, and exit code 1."""
    config = configured(tmp_path, '[models.noclass]\nhandler = "mine:NoSuchClass"\n')
    with running(config, folder=tmp_path) as server:
        assert server.wait_end() == 1
    assert f"actorserve: models.noclass: {REASONS['noclass']}\n" in server.lines["err"]
    assert "actorserve: no model could be loaded\n" in server.lines["err"]
    assert "good bye" not in server.text()


def test_a_model_that_is_taken_away_while_it_loads_has_not_failed(tmp_path):
    """A reload replaces the only model before it is READY: the server goes on with the one in its place."""
    names = {one: "load = " + json.dumps(str(tmp_path / one)) for one in ("first", "second")}
    for one in names:
        os.mkfifo(tmp_path / one)
    config = configured(tmp_path, GATE.format(names["first"]))
    with running(config, folder=tmp_path) as server:
        server.address()
        configured(tmp_path, GATE.replace("models.gate", "models.other").format(names["second"]))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(r"other/1\.0.*model registered", "err")
        with grpc.insecure_channel(server.address()) as channel:
            asked = predict(channel, "other")
            open_gate(tmp_path, "second")
            assert asked.result().prediction == b"hello"
        assert "no model could be loaded" not in server.text("err")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0


def test_json_log(tmp_path):
    """The log is one JSON object a line where stderr is no terminal; each call is a line with peer, method, status."""
    config = configured(tmp_path, ECHO)
    with running(config, folder=tmp_path) as server, grpc.insecure_channel(server.address()) as channel:
        server.wait_ready()
        predict(channel, "echo").result()
        assert predict(channel, 'no "such"').exception() is not None
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
    entries = [json.loads(line) for line in server.lines["err"]]
    assert all({"event", "level", "timestamp"} <= entry.keys() for entry in entries)
    good, bad = (entry for entry in entries if entry["event"] == "call")
    assert (good["method"], good["status"]) == (
        f"{'/org.pytorch.serve.grpc.inference.InferenceAPIsService'}/Predictions",
        0,
    )
    assert good["peer"].startswith("127.0.0.1:")
    assert good["request_id"] == "the-id"
    assert good["ms"] > 0
    assert (bad["status"], bad["message"]) == (5, 'Model not found: no "such"')
    assert {"model registered", "worker ready", "draining", "drained"} <= {entry["event"] for entry in entries}


def test_console_log(tmp_path):
    """`log.format = "console"` is for people: no JSON, one line a call; `access = false` leaves those out."""
    config = configured(tmp_path, ECHO, '[log]\nformat = "console"\n')
    for access in (True, False):
        arguments = () if access else ("--set=log.access=false",)
        with (
            running(config, *arguments, folder=tmp_path) as server,
            grpc.insecure_channel(server.address()) as channel,
        ):
            server.wait_ready()
            predict(channel, "echo").result()
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_end() == 0
        log = server.text("err")
        assert "{" not in log
        assert "worker ready" in log
        calls = re.findall(r" call 127\.0\.0\.1:\d+ /\S+/Predictions 0 \d+\.\d+ms the-id\n", log)
        assert len(calls) == access


def test_closed_terminal(tmp_path):
    """A reader of stdout and stderr who goes away (`| head -1`) does not end the server."""
    config = configured(tmp_path, ECHO + GATE.format(fifo(tmp_path, "load")))
    with running(config, folder=tmp_path, start=("-c", CLOSING)) as server:
        with grpc.insecure_channel(server.address()) as channel:
            open_gate(tmp_path, "load")
            assert predict(channel, "gate").result().prediction == b"hello"
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
    assert len(server.lines["out"]) == 1


CLOSING = """
import builtins, os, sys

def once(*arguments, **keywords):
    builtins.print(*arguments, **keywords)
    read, write = os.pipe()
    os.close(read)
    for descriptor in (1, 2):
        os.dup2(write, descriptor)  # from here on, nobody reads

from actorserve import console
from actorserve.__main__ import main
console.print = once
main()
"""

WATCHED = """
import asyncio, json, sys

def refuse(*_arguments):
    raise RuntimeError("no asyncio loop runs here")

asyncio.new_event_loop = asyncio.BaseEventLoop.__init__ = refuse
from actorserve.__main__ import main
try:
    main()
finally:
    print("LOADED", json.dumps(sorted({"torch", "numpy", "safetensors", "PIL", "grpc"} & set(sys.modules))))
"""


def test_server_loads_no_torch_and_runs_no_asyncio(tmp_path):
    """After real models were served and changed, the server's process has loaded neither torch nor numpy, and it does
    not mind that no asyncio loop can be made.
    """
    sample = Path(__file__).parents[2] / "examples" / "samples" / "digit_7.png"
    config = configured(tmp_path, ECHO + '[models.digits]\nhandler = "actorserve.handlers.digits:Digits"\n')
    with (
        running(config, folder=tmp_path, start=("-c", WATCHED)) as server,
        grpc.insecure_channel(server.address()) as channel,
    ):
        server.wait_ready()
        assert json.loads(predict(channel, "digits", sample.read_bytes()).result().prediction)["digit"] == 7
        assert predict(channel, "echo").result().prediction == b"hello"
        server.process.send_signal(signal.SIGINT)
        assert server.wait_end() == 0
    assert server.lines["out"][-1] == "LOADED []\n"


COLLECTS = """
import gc, itertools
by_itself = []
gc.callbacks.append(lambda phase, info: by_itself.append(gc.isenabled()))
from actorserve.__main__ import main
try:
    main()
finally:
    print("LOOKS", max(len(list(some)) for python, some in itertools.groupby(by_itself) if not python))
"""


def test_a_server_looks_for_garbage_at_times_of_its_own(tmp_path):
    """While it serves, its process does so again and again, and Python never by itself in between (collecting.py)."""
    config = configured(tmp_path, ECHO)
    with (
        running(config, folder=tmp_path, start=("-c", COLLECTS)) as server,
        grpc.insecure_channel(server.address()) as channel,
    ):
        server.wait_ready()
        assert all(predict(channel, "echo").result().prediction == b"hello" for _ in range(100))
        time.sleep(2)
        server.process.send_signal(signal.SIGINT)
        assert server.wait_end() == 0
    assert int(server.lines["out"][-1].removeprefix("LOOKS ")) > 20


async def test_hang_ups_while_it_starts(autojump_clock):
    """Two SIGHUPs before the server can be reloaded: the file is read once that is so, and never an older one last."""
    begun, said, applied = trio.Event(), ["old"], []

    class Starting:
        async def wait_begun(self):
            await begun.wait()

        async def reload(self, settings):
            applied.append(settings)

    console = Console(config.Config(), lambda: said[0])
    async with trio.open_nursery() as nursery:
        for text in ("older", "newest"):
            nursery.start_soon(console._reload, Starting())
            await trio.sleep(1)
            said[0] = text
        begun.set()
    assert applied == ["newest", "newest"]


async def test_a_file_that_takes_long_to_read():
    """Calls go on while the file is read: it is read in a thread. The next SIGHUP waits, so that the last is applied
    last.
    """
    begun, going, applied, texts = threading.Event(), threading.Event(), [], ["second", "first"]

    def reread():
        text = texts.pop()
        begun.set()
        assert text == "second" or going.wait(PATIENCE_S)
        return text

    class Begun:
        async def wait_begun(self):
            await trio.lowlevel.checkpoint()

        async def reload(self, settings):
            applied.append(settings)

    console = Console(config.Config(), reread)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(console._reload, Begun())
        assert await trio.to_thread.run_sync(begun.wait, PATIENCE_S)
        await trio.testing.wait_all_tasks_blocked()
        assert (applied, texts) == ([], ["second"])
        going.set()
    assert applied == ["first", "second"]
