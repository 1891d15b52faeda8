"""What docs/migrating-from-ray-serve.md, docs/client.md and README.md say of applications, run as it stands."""

import re
import shlex
import signal
import subprocess
import sys
import textwrap
import tomllib

import anyio
import pytest
from test_serve_examples import EXAMPLES, Running
from test_serve_run import ROOT, begin, free_port

from actorserve.client import Channel
from actorserve.proto.ray_serve_grpc import PredictAPIsServiceStub
from actorserve.proto.ray_serve_pb2 import PredictRequest

PAGE = (ROOT / "docs" / "migrating-from-ray-serve.md").read_text()
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """Language and text of each block of a page."""
    return [(language, textwrap.dedent(text)) for _, language, text in BLOCK.findall(page)]


@pytest.fixture
def steps(tmp_path):
    """The page's commands, in a folder with the files that it shows; its ports are free ones."""
    ports = {"9000": str(free_port()), "9001": str(free_port())}
    commands = []
    for language, text in blocks(PAGE):
        if language == "sh":
            commands += text.splitlines()
        else:
            name = re.match(r"# (\S+)\n", text)[1]
            (tmp_path / name).write_text(re.sub("9000|9001", lambda found: ports[found[0]], text))
    return tmp_path, commands


def test_step_by_step(steps):
    """The page's sed command makes Ray's script and Ray's client ours; then both ways of serving answer the client."""
    folder, commands = steps
    change, *runs = map(shlex.split, commands)
    assert [run[0] for run in runs] == ["python"] * 3
    script, ask, serve = (run[1:] for run in runs)
    subprocess.run(["bash", "-c", commands[0]], cwd=folder, check=True)  # a shell, for *.py
    assert change[0] == "sed"
    for name in ("app.py", "client.py"):
        assert not re.search(r"^\s*(from|import) ray\b", (folder / name).read_text(), re.MULTILINE)
    for command, answer in ((script, "2.0\n"), (serve, "4.0\n")):
        server = begin(*command, folder=folder)
        try:
            wait_for_market(folder, server)
            asked = begin(*ask, folder=folder)
            assert asked.communicate(timeout=60) == (answer, "")
        finally:
            server.send_signal(signal.SIGINT)
            _, err = server.communicate(timeout=60)
        assert server.returncode == 0, err


def wait_for_market(folder, server):
    """Until the driver's port answers."""
    (port,) = re.findall(r"port=(\d+)", (folder / "app.py").read_text())
    wait = f"import grpc; grpc.channel_ready_future(grpc.insecure_channel('127.0.0.1:{port}')).result(60)"
    assert subprocess.run([sys.executable, "-c", wait], check=False).returncode == 0, server.poll()


def test_what_stays():
    """The sed command changes imports in all their forms and nothing else: the wire's names stay Ray's."""
    command = next(text for language, text in blocks(PAGE) if language == "sh").replace("-Ei", "-E").replace("*.py", "")
    before = """\
from ray import serve
import ray.serve as s
from ray.serve.generated import serve_pb2
    from ray.serve.handle import DeploymentHandle
PATH = "/ray.serve.PredictAPIsService/Predict"
"""
    done = subprocess.run(["bash", "-c", command], input=before, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "from actorserve import serve",
        "import actorserve.serve as s",
        "from actorserve.serve.generated import serve_pb2",
        "    from actorserve.serve.handle import DeploymentHandle",
        'PATH = "/ray.serve.PredictAPIsService/Predict"',
    ]


def test_what_is_named():
    """The extra that the page installs exists, and the files that it and docs/applications.md name are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"actorserve\[(\w+)\]", PAGE)) <= extras.keys()
    for name in ("README.md", "docs/migrating-from-ray-serve.md", "docs/applications.md"):
        page = ROOT / name
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        assert links
        assert [link for link in links if not (page.parent / link).exists()] == []
    assert all((ROOT / path).is_dir() for path in re.findall(r"`(examples/\w+)`", PAGE))


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_our_own_client(backend):
    """The recipe of docs/client.md for Predict, its two lines as they stand, on trio and on asyncio."""
    page = (ROOT / "docs" / "client.md").read_text()
    (recipe,) = [text for _, text in blocks(page) if "PredictAPIsServiceStub" in text]
    assert len(recipe.splitlines()) == 2
    names = {"Channel": Channel, "PredictAPIsServiceStub": PredictAPIsServiceStub, "PredictRequest": PredictRequest}
    with Running(EXAMPLES / "sums" / "app.py") as running:
        code = recipe.replace("127.0.0.1:9000", running.address) + "return reply"
        exec(f"async def ask():\n{textwrap.indent(code, '    ')}", names)  # noqa: S102  # the page's own lines
        assert anyio.run(names["ask"], backend=backend).prediction == b"\x00\x00\x00\x40"
