"""The rules of the forkserver and of its forks, one by one, with real processes and no server around them."""

# ruff: noqa: SIM300  # expected == actual

import ast
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from serving import HERE, Serving, wait_for

from actorserve import actors
from actorserve.actors import forkserver as forkserver_module
from actorserve.actors.environment import ONE_THREAD
from actorserve.actors.forkserver import ForkFailed, Forkserver
from actorserve.actors.process import WorkerProcess
from actorserve.testing import descendants, is_alive

TOOL = f'[models.tool]\nhandler = "handlers_for_tests:Tool"\nsource = "{HERE}"\n'
ACTORS = Path(actors.__file__).parent


@asynccontextmanager
async def running(forkserver=None):
    """A forkserver that is warm."""
    forkserver = Forkserver() if forkserver is None else forkserver
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forkserver.run)
        with trio.fail_after(60):
            await forkserver.wait_warm()
        yield forkserver
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def forked(forkserver):
    """A worker that waits for LOAD."""
    ours, theirs = socket.socketpair()
    with ours, open(os.devnull, "wb") as null:  # noqa: ASYNC230, PTH123  # does not block
        with theirs:
            pid, pidfd = await forkserver.fork({}, (theirs.fileno(), null.fileno(), null.fileno()))
        worker = WorkerProcess(pid, pidfd, -1, -1)
        forkserver.adopt(worker)
        yield worker
        worker.kill()
        with trio.fail_after(10):
            await worker.wait()


def proc(pid, name):
    """A file of /proc/PID."""
    return Path(f"/proc/{pid}/{name}").read_text()


def same_file(one, other):
    """Whether two paths mean one file."""
    return Path(one).samefile(other)


def field(pid, name):
    """A line of /proc/PID/status."""
    lines = proc(pid, "status").splitlines()
    return next(line.split(":")[1].split()[0] for line in lines if line.startswith(name))


def ignores_sigterm(pid):
    """Whether a process ignores SIGTERM, as forkservers do."""
    return bool(int(field(pid, "SigIgn"), 16) & 1 << (signal.SIGTERM - 1))


async def until(condition):
    """Poll until something is true."""
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.02)


async def test_a_forkserver_has_one_thread_and_its_own_session():
    """Warm: torch is in, with one thread, in the environment that keeps it so, away from the terminal's group."""
    async with running() as forkserver:
        pid = forkserver.pid
        environment = proc(pid, "environ").split("\0")

        assert "1" == field(pid, "Threads")
        assert {f"{name}={value}" for name, value in ONE_THREAD.items()} <= set(environment)
        assert (pid, pid) == (os.getsid(pid), os.getpgid(pid))
        assert "libtorch_cpu" in proc(pid, "maps")
        assert same_file(os.devnull, f"/proc/{pid}/fd/0")


async def test_a_terminals_signals_do_not_end_it():
    """Ctrl-C goes to a whole group: the forkserver stays, and forks."""
    async with running() as forkserver:
        pid = forkserver.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.killpg(pid, number)
        async with forked(forkserver) as worker:
            assert is_alive(worker.pid)
        assert pid == forkserver.pid


async def test_it_keeps_nothing_of_its_forks():
    """After ten forks it has the descriptors that it had, and no zombie."""
    async with running() as forkserver:
        before = len(os.listdir(f"/proc/{forkserver.pid}/fd"))
        for _ in range(10):
            async with forked(forkserver):
                pass
        await until(lambda: not descendants(forkserver.pid))
        assert before == len(os.listdir(f"/proc/{forkserver.pid}/fd"))


async def test_a_fork_that_is_not_answered(monkeypatch):
    """A forkserver that hangs is killed and started anew; the order fails, the next one does not."""
    monkeypatch.setattr(forkserver_module, "FORK_TIMEOUT_S", 0.5)
    async with running() as forkserver:
        hangs = forkserver.pid
        os.kill(hangs, signal.SIGSTOP)
        with pytest.raises(ForkFailed, match="did not answer"):
            async with forked(forkserver):
                pass
        await until(lambda: not is_alive(hangs) and forkserver.starts == 2)
        monkeypatch.setattr(forkserver_module, "FORK_TIMEOUT_S", 30)
        async with forked(forkserver) as worker:
            assert is_alive(worker.pid)


def test_the_fork_timeout():
    """Ten seconds, as the design says."""
    assert 10.0 == forkserver_module.FORK_TIMEOUT_S


async def test_a_stopped_forkserver_dies_with_the_server(tmp_path):
    """The kernel ends it, not its own loop: it is stopped while the process that started it is killed."""
    code = (
        "import sys, trio; from actorserve.actors.forkserver import Forkserver\n"
        "async def main():\n"
        "    async with trio.open_nursery() as n:\n"
        "        f = Forkserver(); n.start_soon(f.run); await f.wait_warm()\n"
        "        print(f.pid, file=sys.stderr, flush=True)\n"
        "trio.run(main)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as parent:
        assert parent.stderr is not None
        pid = int(await trio.to_thread.run_sync(parent.stderr.readline))
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
    await until(lambda: not is_alive(pid))


async def test_a_stopped_worker_dies_with_its_forkserver():
    """The kernel ends it (PDEATHSIG): it is stopped, and could not find the end of its socket."""
    async with running() as forkserver, forked(forkserver) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        os.kill(forkserver.pid, signal.SIGKILL)
        with trio.fail_after(10):
            assert -signal.SIGKILL == await worker.wait()
        assert not is_alive(worker.pid)


async def test_a_worker_is_signalled_through_its_pidfd():
    """Once it has ended nothing is signalled any more, whoever has its number then; its status is as reported."""
    async with running() as forkserver, forked(forkserver) as worker:
        await until(lambda: not ignores_sigterm(worker.pid))  # it has set itself up
        os.kill(worker.pid, signal.SIGTERM)
        with trio.fail_after(10):
            assert -signal.SIGTERM == await worker.wait()
        assert -1 == worker.pidfd
        worker.pid = os.getpid()  # the number of another: of this test
        worker.kill()


async def test_a_cancelled_fork_leaves_no_worker():
    """Who ordered a worker and does not wait for it gets none: it is killed when it comes."""
    async with running() as forkserver:
        os.kill(forkserver.pid, signal.SIGSTOP)
        with trio.move_on_after(0.2):
            async with forked(forkserver):
                pass
        os.kill(forkserver.pid, signal.SIGCONT)
        async with forked(forkserver) as worker:
            await until(lambda: descendants(forkserver.pid) == {worker.pid})


async def test_many_forks_at_once():
    """Forks that are ordered together all come, also where what they are given is more than a socket holds."""
    workers = set()
    environment = {"LONG": "x" * 100_000}
    null = os.open(os.devnull, os.O_RDWR)

    async def fork(forkserver):
        pid, pidfd = await forkserver.fork(environment, (null, null, null))
        workers.add(pid)
        forkserver.adopt(WorkerProcess(pid, pidfd, -1, -1))

    try:
        async with running() as forkserver:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(fork, forkserver)
    finally:
        os.close(null)
    assert 8 == len(workers)


class AnswersWhenCancelled(Forkserver):
    """Whoever waits for a fork is cancelled in the moment in which it comes, before he has run again."""

    def __init__(self):
        super().__init__()
        self.scope = trio.CancelScope()

    def _hear(self, said, ancillary):
        if "forked" in said:
            self.scope.cancel()
        super()._hear(said, ancillary)


async def test_a_fork_that_comes_with_the_cancellation_is_ended():
    """Its process ends and its descriptor is closed, although the answer was there before the caller had gone."""
    async with running(AnswersWhenCancelled()) as forkserver:
        before = len(os.listdir("/proc/self/fd"))
        with forkserver.scope:
            async with forked(forkserver):
                pass
        assert forkserver.scope.cancelled_caught
        await until(lambda: not descendants(forkserver.pid))
        assert before == len(os.listdir("/proc/self/fd"))


LATE = """#!{python}
import array, json, os, socket, subprocess, sys, time
sock = socket.socket(fileno=int(sys.argv[4]))
sock.send(b'{{"warm": true}}')
for command in ("true", "cat"):
    order, given, _, _ = socket.recv_fds(sock, 65536, 3)
    worker = subprocess.Popen([command], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(worker.pid)
    if command == "true":
        worker.wait()
        while not os.path.exists({go!r}):
            time.sleep(0.01)
    answer = json.dumps({{"forked": json.loads(order)["fork"], "pid": worker.pid}})
    socket.send_fds(sock, [answer.encode()], [pidfd])
sock.recv(1)
"""


async def test_a_fork_that_nobody_waits_for_may_have_ended_by_itself(tmp_path):
    """Its worker found the end of its socket and was reaped: there is nothing to kill, and the next fork comes."""
    script = tmp_path / "late"
    script.write_text(LATE.format(python=sys.executable, go=str(tmp_path / "go")))
    script.chmod(0o755)
    async with running(Forkserver(python=str(script))) as forkserver:
        with trio.move_on_after(0.2):
            async with forked(forkserver):
                pass
        (tmp_path / "go").touch()
        async with forked(forkserver) as worker:
            assert is_alive(worker.pid)
        assert 1 == forkserver.starts


def test_only_the_forkserver_forks():
    """The server never forks and runs nothing between fork and exec: those calls stand in processes of their own."""
    found = {}
    for path in ACTORS.glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        given = {node.arg for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.keyword)}
        if ({"fork", "forkpty"} & names and path.stem != "forkservers") or "preexec_fn" in given:
            found[path.stem] = sorted({"fork", "forkpty"} & names | {"preexec_fn"} & given)

    assert {"forkserver_main": ["fork"], "install_main": ["preexec_fn"]} == found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server with one worker."""
    serving = Serving(tmp_path_factory.mktemp("rules"), TOOL)
    try:
        yield serving
        serving.close()
    finally:
        serving.kill()


def test_a_worker_leads_its_own_group(server):
    """Forked by the forkserver, in its own process group, ended by the kernel when its parent ends."""
    pid, parent, group, session, signal_of_death = server.ask("tool", "identity")

    assert (server.forkserver(), pid, server.forkserver()) == (parent, group, session)
    assert signal.SIGKILL == signal_of_death


def test_no_handler_is_loaded_in_the_forkserver(server):
    """No process that has loaded a handler is ever forked: two workers import it, each for itself."""
    first = server.ask("tool", "loaded")
    os.kill(first[0], signal.SIGKILL)
    second = wait_for(lambda: server.ask("tool", "loaded"))

    assert first[0] != second[0]
    assert first[1] != second[1]


def test_an_exec_is_said_once(tmp_path):
    """A forkserver with another thread refuses each fork; that workers are exec'd is logged once."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "if any('forkserver_main' in argument for argument in sys.orig_argv):\n"
        "    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()\n"
    )
    serving = Serving(tmp_path, TOOL + "workers = { min = 2 }\n", environment={"PYTHONPATH": str(tmp_path)})
    try:
        wait_for(lambda: len(serving.workers("tool")) == 2, within=60)
        said = [line for line in serving.log() if "exec'd instead of forked" in str(line["event"])]
        assert 1 == len(said)
        assert "threads" in said[0]["why"]
        pid, parent, group, _, signal_of_death = serving.ask("tool", "identity")
        assert (serving.popen.pid, pid, signal.SIGKILL) == (parent, group, signal_of_death)
        serving.close()
    finally:
        serving.kill()
