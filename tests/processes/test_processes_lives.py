"""How processes begin and end together: one server a test."""

# ruff: noqa: SIM300  # expected == actual

import os
import signal
from pathlib import Path

import pytest
import trio
from serving import HERE, wait_for

from actorserve import testing
from actorserve.testing import descendants, is_alive

ECHO = {"models": {"echo": {"handler": "actorserve.handlers.echo:Echo"}}}
TOOL = f'[models.tool]\nhandler = "handlers_for_tests:Tool"\nsource = "{HERE}"\nworkers = {{ min = 2 }}\n'
ONE_MORE_THREAD = """
import sys, threading, time
if any("forkserver_main" in argument for argument in sys.orig_argv):
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
"""


def test_nothing_outlives_the_server(start):
    """Kill -9 of the server ends the forkserver, the workers, and what these are doing."""
    serving = start(TOOL)
    wait_for(lambda: len(serving.workers("tool")) == 2)
    serving.ask_later("tool", "sleep 60")
    family = descendants(serving.popen.pid)
    assert 3 == len(family)
    serving.popen.kill()
    serving.popen.wait()
    wait_for(lambda: not any(map(is_alive, family)), within=5)


def test_a_forkserver_killed_before_it_is_warm(start):
    """Nobody waits for a forkserver that has died: the model is loaded by the next one."""
    serving = start(TOOL)
    pid = wait_for(lambda: next(iter(descendants(serving.popen.pid)), None))
    os.kill(pid, signal.SIGKILL)
    assert serving.ask("tool")
    wait_for(lambda: len(serving.workers("tool")) == 2)
    serving.close()


def test_with_a_second_thread_workers_are_execd(start, tmp_path):
    """A forkserver that has another thread refuses; the worker is exec'd, works, is replaced, ends with its group."""
    (tmp_path / "sitecustomize.py").write_text(ONE_MORE_THREAD)
    serving = start(TOOL.replace("min = 2", "min = 1"), environment={"PYTHONPATH": str(tmp_path)})
    pid = serving.ask("tool", "pid")
    child = serving.ask("tool", "child")
    assert serving.logged(event="workers are exec'd instead of forked, which takes seconds each")
    assert str(serving.popen.pid) == Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(child), within=5)
    again = serving.ask("tool", "pid")
    assert pid != again
    serving.close()
    assert not is_alive(again)


async def test_a_leaked_descriptor_fails_the_block():
    """testing.serve fails where a descriptor is left that was not there before."""
    with pytest.raises(testing.Leak, match="/dev/null"):
        async with testing.serve(ECHO):
            leaked = os.open(os.devnull, os.O_RDONLY)
    os.close(leaked)


async def test_a_clean_block_passes_after_a_kill():
    """A worker that was killed and replaced within the block leaves nothing."""
    async with testing.serve(ECHO) as app:
        first = app.kill_worker("echo")
        with trio.fail_after(20):
            while [replica.pid for model in app.tree().models for replica in model.replicas] in ([first], [None]):
                await trio.sleep(0.02)


async def test_the_block_raises_what_was_raised_in_it():
    """An error of the block comes out as it is, in no group."""
    with pytest.raises(LookupError, match="nobody"):
        async with testing.serve(ECHO) as app:
            app.kill_worker("nobody")


async def test_real_workers_under_a_mock_clock(autojump_clock):
    """Real workers are refused under a clock that would fire every timeout while they work."""
    with pytest.raises(RuntimeError, match="scripted"):
        async with testing.serve(ECHO):
            pass
