"""SIGHUP with real servers and workers: the difference, while requests flow; and what is back after SIGKILL."""

import json
import re
import threading

import grpc
import pytest
from serving import Serving, wait_for
from test_processes_registry import kill, manage

SAYS = """
from actorserve.errors import LoadFailed


class Says:
    def load(self, context):
        self.word = context.options["word"]
        if self.word == "bad":
            raise LoadFailed("it cannot say bad")

    def infer(self, batch):
        return [f"{self.word} CODE" for _ in batch]
"""


def says(name, word, more=""):
    return f'[models.{name}]\nhandler = "mine:Says"\noptions = {{ word = "{word}" }}\n{more}'


class Flow:
    """Asks a model without a pause, in a thread."""

    def __init__(self, server, model):
        self.answers, self.errors, self.over = [], [], threading.Event()
        self._server, self._model = server, model
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self):
        while not self.over.is_set():
            try:
                self.answers.append(self._server.ask(self._model))
            except grpc.RpcError as error:
                self.errors.append(error)

    def wait_for(self, answer):
        wait_for(lambda: answer in self.answers[-3:])

    def close(self):
        self.over.set()
        self._thread.join()


@pytest.fixture
def start(tmp_path):
    """Start servers on one folder, one after the other; none is left."""
    servers = []

    def start_(models):
        if not servers:
            (tmp_path / "mine.py").write_text(SAYS.replace("CODE", "old"))
        servers.append(Serving(tmp_path, models))
        return servers[-1]

    yield start_
    for server in servers:
        kill(server)


def listed(server):
    return re.findall(r'"modelName": "(\w+)"', manage(server, "ListModels", limit=10))


def errors(server):
    return [line for line in server.log() if line.get("level") == "error"]


def test_the_difference_while_requests_flow(start, tmp_path):
    """A new entry comes, a removed one goes, a changed one is rolled out with its new code, all at once and without a
    failed request; the workers of the others stay. After SIGKILL the next server has what the file says.
    """
    server = start(says("c", "one") + says("r", "one") + says("s", "one"))
    flow = Flow(server, "c")
    try:
        flow.wait_for("one old")
        assert server.ask("s") == "one old"
        stays = server.workers("s")
        (tmp_path / "mine.py").write_text(SAYS.replace("CODE", "new"))
        file = says("c", "two", "workers = { min = 2 }\n") + says("n", "one") + says("s", "one")
        server.hang_up(file)
        flow.wait_for("two new")
        assert server.ask("n") == "one new"
        wait_for(lambda: listed(server) == ["c", "n", "s"])
    finally:
        flow.close()
    assert (flow.errors, list(dict.fromkeys(flow.answers))) == ([], ["one old", "two new"])
    assert (stays, server.ask("s")) == (server.workers("s"), "one old")
    changes = {line["key"] for line in server.log() if line["event"] == "configuration changed"}
    assert changes == {"models.c", "models.n", "models.r"}
    kill(server)
    server = start(file)
    wait_for(lambda: len(server.workers("c")) == 2)
    assert (listed(server), server.ask("c")) == (["c", "n", "s"], "two new")
    assert errors(server) == []


def test_another_version_while_requests_flow(start):
    """An entry's new version is READY and the default before the old one goes; no request fails."""
    server = start(says("c", "one"))
    flow = Flow(server, "c")
    try:
        flow.wait_for("one old")
        server.hang_up(says("c", "two", 'version = "2.0"\n'))
        flow.wait_for("two old")
        wait_for(lambda: '"1.0"' not in manage(server, "DescribeModel", model_name="c", model_version="all"))
    finally:
        flow.close()
    assert (flow.errors, list(dict.fromkeys(flow.answers))) == ([], ["one old", "two old"])


@pytest.mark.parametrize(
    ("wrong", "key", "why"),
    [
        ('[models.n]\nhandler = "mine:Says"\nqueue_size = "7"\n', "models.n.queue_size", "a whole number"),
        ('[models.n]\nsource = "nowhere"\n', "models.n.source", "there is no folder"),
        (f'[models.n]\nsource = "{"n" * 5000}"\n', "models.n.source", "File name too long"),
        ("[models.n\n", "", "is not TOML"),
        (f"[models.n]\nqueue_size = {'7' * 5000}\n", "", "is not TOML"),
        ("[models.n]\nhandlr = 1\n", "models.n.handlr", "did you mean handler?"),
    ],
)
def test_a_wrong_file_changes_nothing(start, wrong, key, why):
    """One line of the log names the key; no entry is applied; the next file, mended, is."""
    server = start(says("c", "one"))
    assert server.ask("c") == "one old"
    before = server.workers("c")
    server.hang_up(says("c", "two") + wrong)
    line = server.logged(event="configuration not reloaded, nothing has changed")
    assert (line["key"], line["level"]) == (key, "error")
    assert why in line["why"]
    assert (server.ask("c"), server.workers("c"), len(errors(server))) == ("one old", before, 1)
    server.hang_up(says("c", "two"))
    wait_for(lambda: server.ask("c") == "two old")
    server.close()


def test_a_rollout_that_fails(start):
    """A new worker that cannot be loaded: the old ones serve on, the log and DescribeModel say why; once the file is
    mended, it is taken up. After SIGKILL in between, the next server has what the file says, FAILED as it is.
    """
    server = start(says("c", "one") + says("s", "one"))
    flow = Flow(server, "c")
    try:
        flow.wait_for("one old")
        server.hang_up(says("c", "bad") + says("s", "one"))
        line = server.logged(event="configuration not applied")
        assert (line["model"], "it cannot say bad" in line["why"]) == ("c/1.0", True)
        (model,) = json.loads(manage(server, "DescribeModel", model_name="c"))
        assert (model["status"], "it cannot say bad" in model["rollout"]) == ("READY", True)
    finally:
        flow.close()
    assert (flow.errors, set(flow.answers)) == ([], {"one old"})
    kill(server)
    server = start(says("c", "bad") + says("s", "one"))
    wait_for(lambda: server.states("c")[0][0] == "FAILED")
    server.hang_up(says("c", "two") + says("s", "one"))
    wait_for(lambda: server.states("c")[0][0] == "READY")
    assert server.ask("c") == "two old"
    server.close()


def test_what_needs_a_restart_is_named(start):
    """A line for each key that only a restart takes up; what else is different is taken up all the same."""
    server = start(says("c", "one"))
    assert server.ask("c") == "one old"
    server.tables = server.tables.replace("grace_s = 2", 'grace_s = 3\nstate_dir = "other"')
    server.hang_up(says("c", "two") + '[listeners.more]\naddress = "127.0.0.1:0"\nservices = ["health"]\n')
    wait_for(lambda: server.ask("c") == "two old")
    named = [line["key"] for line in server.log() if line["event"] == "configuration needs a restart"]
    assert named == ["server.state_dir", "server.grace_s", "listeners.more"]
    server.close()
