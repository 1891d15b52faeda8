"""Several versions of one model in config.toml, with real servers: defaults, SIGKILL, SIGHUP."""

import json

import pytest
from serving import Serving, wait_for
from test_processes_registry import kill, manage
from test_processes_reload import SAYS, Flow, says

ONE = says("c", "one")
TWO = says("c-2", "two", 'name = "c"\nversion = "2.0"\n')


@pytest.fixture
def start(tmp_path):
    """Start servers on one folder, one after the other; none is left."""
    servers = []
    (tmp_path / "mine.py").write_text(SAYS.replace("CODE", "old"))

    def start_(models):
        servers.append(Serving(tmp_path, models))
        return servers[-1]

    yield start_
    for server in servers:
        kill(server)


def versions(server):
    """Each version with its READY workers."""
    described = json.loads(manage(server, "DescribeModel", model_name="c", model_version="all"))
    return {
        one["modelVersion"]: [worker["pid"] for worker in one["workers"] if worker["status"] == "READY"]
        for one in described
    }


def default(server):
    (one,) = json.loads(manage(server, "DescribeModel", model_name="c"))
    return one["modelVersion"]


def test_two_versions_and_their_default(start):
    """Both are served; calls without a version get the first entry's, then SetDefault's choice, after SIGKILL too,
    until the file itself calls one the default.
    """
    server = start(ONE + TWO)
    assert server.ask("c") == "one old"
    wait_for(lambda: all(versions(server).values()))
    assert list(versions(server)) == ["1.0", "2.0"]
    manage(server, "SetDefault", model_name="c", model_version="2.0")
    assert server.ask("c") == "two old"
    kill(server)
    server = start(ONE + TWO)
    assert server.ask("c") == "two old"
    kill(server)
    server = start(ONE + "default = true\n" + TWO)
    assert server.ask("c") == "one old"
    kill(server)
    server = start(ONE + TWO.replace("version", "default = true\nversion"))
    assert server.ask("c") == "two old"
    server.close()


def test_a_version_comes_and_goes(start):
    """SIGHUP adds a version while the other answers, makes it the default, and takes the other away: no request fails,
    and no worker is started that need not be.
    """
    server = start(ONE)
    flow = Flow(server, "c")
    try:
        flow.wait_for("one old")
        stays = versions(server)["1.0"]
        server.hang_up(ONE + TWO)
        wait_for(lambda: versions(server).get("2.0"))
        assert (default(server), versions(server)["1.0"]) == ("1.0", stays)
        server.hang_up(ONE + TWO + "default = true\n")
        flow.wait_for("two old")
        new = versions(server)
        assert new["1.0"] == stays
        server.hang_up(TWO + "default = true\n")
        wait_for(lambda: list(versions(server)) == ["2.0"])
        assert versions(server)["2.0"] == new["2.0"]
    finally:
        flow.close()
    assert (flow.errors, list(dict.fromkeys(flow.answers))) == ([], ["one old", "two old"])
    server.close()


def test_the_default_version_goes(start):
    """Where the default's entry is removed the first that is left is the default, as it is after SIGKILL."""
    server = start(ONE + TWO + says("c-3", "three", 'name = "c"\nversion = "3.0"\n'))
    assert server.ask("c") == "one old"
    file = TWO + says("c-3", "three", 'name = "c"\nversion = "3.0"\n')
    server.hang_up(file)
    wait_for(lambda: list(versions(server)) == ["2.0", "3.0"])
    assert server.ask("c") == "two old"
    kill(server)
    server = start(file)
    assert server.ask("c") == "two old"
    server.close()


def test_twice_the_same(start):
    """A reloaded file with one version twice changes nothing, and one line names both entries."""
    server = start(ONE)
    assert server.ask("c") == "one old"
    server.hang_up(ONE + TWO.replace("2.0", "1.0"))
    line = server.logged(event="configuration not reloaded, nothing has changed")
    assert (line["key"], "c and c-2 are both c version 1.0" in line["why"]) == ("models", True)
    assert list(versions(server)) == ["1.0"]
    server.close()


def test_a_default_that_cannot_be_loaded(start):
    """A new version that is to be the default is not while it cannot be loaded; the old one answers."""
    server = start(ONE)
    flow = Flow(server, "c")
    try:
        flow.wait_for("one old")
        bad = TWO.replace('"two"', '"bad"') + "default = true\n"
        server.hang_up(ONE + bad)
        server.logged(event="configuration not applied", model="c/2.0")
        server.hang_up(ONE + bad)
        wait_for(lambda: len([line for line in server.log() if line["event"] == "configuration not applied"]) == 2)
        assert default(server) == "1.0"
        server.hang_up(ONE + TWO + "default = true\n")
        flow.wait_for("two old")
    finally:
        flow.close()
    assert flow.errors == []
    server.close()
