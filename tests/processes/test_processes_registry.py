"""The registry with real servers: what survives SIGKILL, whose word counts after it, and who may hold the folder."""

import random
import subprocess
import sys

import pytest
from registry_campaign import campaign
from serving import Serving, wait_for

from actorserve.proto import management_pb2
from actorserve.proto.management_pb2 import ManagementResponse

ECHO = "actorserve.handlers.echo:Echo"
TABLE = f'[models.c]\nhandler = "{ECHO}"\nworkers = {{ min = 0, max = 1 }}\n'
SERVICE = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"


def manage(server, rpc, **fields):
    """One management call; gives its text."""
    request = getattr(management_pb2, f"{rpc}Request")(**fields)
    call = server.channels[1].unary_unary(SERVICE + rpc, type(request).SerializeToString, ManagementResponse.FromString)
    return call(request, timeout=60, wait_for_ready=True).msg


def kill(server):
    server.popen.kill()
    server.popen.wait()
    for channel in server.channels:
        channel.close()


async def test_short_campaign(tmp_path):
    """8 times SIGKILL at a random moment of management traffic: nothing that was acknowledged is lost, no ghost."""
    one = await campaign(tmp_path, 8, random.randrange(1 << 30))  # noqa: S311  # a failure prints what was kept and what was told
    assert one.acknowledged > 8


def test_the_api_wins_until_the_text_changes(tmp_path):
    """After SIGKILL a config's model has the workers that ScaleWorker gave it; with another text, the text's. One
    that the API unregistered stays away until its text changes; one that the API registered stays throughout.
    """
    server = Serving(tmp_path, TABLE)
    try:
        manage(server, "ScaleWorker", model_name="c", min_worker=1, max_worker=3)
        manage(server, "RegisterModel", model_name="mine", handler=ECHO, initial_workers=1, synchronous=True)
        kill(server)
        server = Serving(tmp_path, TABLE)
        assert '"maxWorkers": 3' in manage(server, "DescribeModel", model_name="c")
        assert server.ask("mine", "hello") == "hello"
        manage(server, "UnregisterModel", model_name="c")
        kill(server)
        server = Serving(tmp_path, TABLE)
        assert '"c"' not in manage(server, "ListModels", limit=10)
        kill(server)
        server = Serving(tmp_path, TABLE + "queue_size = 7\n")
        assert '"maxWorkers": 1' in manage(server, "DescribeModel", model_name="c")
        assert server.ask("mine", "hello") == "hello"
        kill(server)
        server = Serving(tmp_path, "")
        listed = manage(server, "ListModels", limit=10)
        assert ('"c"' in listed, '"mine"' in listed) == (False, True)
    finally:
        kill(server)


def test_a_second_server_is_refused(tmp_path):
    """On the same folder a second server exits with 1, and its one line names the process that holds it."""
    server = Serving(tmp_path, TABLE)
    try:
        wait_for(lambda: (tmp_path / "state" / "lock").exists() and (tmp_path / "state" / "lock").read_text())
        second = subprocess.run(
            [sys.executable, "-m", "actorserve", str(tmp_path / "config.toml")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert second.stderr == (
            f"actorserve: server.state_dir: {tmp_path / 'state'} is in use by process {server.popen.pid}; "
            "one server, one folder\n"
        )
        assert server.popen.poll() is None
    finally:
        kill(server)


@pytest.mark.parametrize("given", ['state_dir = ""', 'state_dir = "elsewhere/deep"'])
def test_state_dir(tmp_path, given):
    """An empty one remembers nothing and makes no folder; another is made, relative to the config file."""
    server = Serving(tmp_path, "", server=given)
    try:
        manage(server, "RegisterModel", model_name="mine", handler=ECHO)
        kill(server)
        server = Serving(tmp_path, "", server=given)
        kept = '"mine"' in manage(server, "ListModels", limit=10)
        assert kept == ("deep" in given)
        assert (tmp_path / "elsewhere" / "deep" / "registry.sqlite").exists() == kept
        assert not (tmp_path / "state").exists()
    finally:
        kill(server)
