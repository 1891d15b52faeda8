"""Models from URLs and SIGKILL: what was registered comes back out of the store, and nothing else is left."""

import http.server
import os
import threading
import zipfile

import pytest
from serving import MANAGEMENT, Serving, wait_for

from actorserve.proto import management_pb2
from actorserve.proto.inference_pb2 import PredictionsRequest
from actorserve.proto.management_pb2 import ManagementResponse

NOTHING = '{\n  "models": []\n}'
HANDLER = """
import threading

class Packed:
    def load(self, context):
        if "hang" in context.model_dir.joinpath("word.txt").read_text():
            threading.Event().wait()

    def infer(self, batch):
        if batch[0].inputs["data"] == b"hang":
            open(batch[0].inputs["file"], "w").close()
            threading.Event().wait()
        return [b"packed"] * len(batch)
"""


class Pages(http.server.BaseHTTPRequestHandler):
    """m.mar is a model; stuck.mar one that never loads; half.mar never ends."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.archives.get(self.path.partition("?")[0], b"half")
        self.send_response(200)
        self.send_header("content-length", str(len(body) + (self.path == "/half.mar")))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/half.mar":
            self.server.held.wait()

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """A web server in a thread."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    server.archives, server.asked, server.held = {}, [], threading.Event()
    for name, word in (("m", "go"), ("stuck", "hang")):
        with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
            archive.writestr("model.toml", 'handler = "packed:Packed"\n')
            archive.writestr("packed.py", HANDLER)
            archive.writestr("word.txt", word)
        server.archives[f"/{name}.mar"] = (tmp_path / "packed.zip").read_bytes()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.held.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def begin(tmp_path, site):
    """Start the server anew, with the same folder; those before are killed."""
    started = []

    def start():
        for one in started:
            one.kill()
        keys = f'model_store = "store"\ncache_dir = "{tmp_path}/cache"\nallowed_urls = ["{site.url}/.*"]'
        started.append(Serving(tmp_path, "", server=keys))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def call(server, rpc, **fields):
    """One management call, not waited for."""
    request = getattr(management_pb2, f"{rpc}Request")(**fields)
    method = server.channels[1].unary_unary(
        MANAGEMENT + rpc, type(request).SerializeToString, ManagementResponse.FromString
    )
    return method.future(request, timeout=60, wait_for_ready=True)


def stored(tmp_path):
    return sorted(os.listdir(tmp_path / "store"))


def test_it_comes_back_without_another_download(tmp_path, site, begin):
    """After SIGKILL a model from a URL answers again, out of the store; unregistered, its file goes, also then."""
    fields = {"url": f"{site.url}/m.mar?sig=secret", "model_name": "m", "initial_workers": 1, "synchronous": True}
    server = begin()
    assert "registered with 1" in call(server, "RegisterModel", **fields).result().msg
    assert stored(tmp_path) == ["m.mar"]
    server = begin()
    assert server.ask("m") == "packed"
    assert site.asked == ["/m.mar?sig=secret"]
    assert stored(tmp_path) == ["m.mar"]
    assert "secret" not in (tmp_path / "log.jsonl").read_text()
    call(server, "UnregisterModel", model_name="m").result()
    assert stored(tmp_path) == []
    assert call(begin(), "ListModels").result().msg == NOTHING


def test_killed_while_it_downloads(tmp_path, site, begin):
    """Of a download that SIGKILL cut short the next start leaves neither a file nor a registration."""
    server = begin()
    registers = call(server, "RegisterModel", url=f"{site.url}/half.mar", model_name="m")
    wait_for(lambda: (tmp_path / "store").exists() and stored(tmp_path))
    wait_for(lambda: '"downloadedBytes": 4' in call(server, "ListModels").result().msg)
    assert not registers.done()
    server = begin()
    assert call(server, "ListModels").result().msg == NOTHING
    assert stored(tmp_path) == []


def test_killed_while_it_loads(tmp_path, site, begin):
    """A synchronous registration that nobody was told of is dropped by the next start, and so is its file."""
    server = begin()
    registers = call(
        server, "RegisterModel", url=f"{site.url}/stuck.mar", model_name="m", initial_workers=1, synchronous=True
    )
    wait_for(lambda: '"modelName": "m"' in call(server, "ListModels").result().msg.partition("registrations")[0])
    wait_for(lambda: stored(tmp_path) == ["stuck.mar"])  # kept: its part's name is gone
    assert not registers.done()
    server = begin()
    assert call(server, "ListModels").result().msg == NOTHING
    assert stored(tmp_path) == []


def test_killed_while_it_is_unregistered(tmp_path, site, begin):
    """An unregistration that had begun is finished by the next start: the file goes with the model."""
    server = begin()
    call(server, "RegisterModel", url=f"{site.url}/m.mar", model_name="m", initial_workers=1, synchronous=True).result()
    begun = tmp_path / "begun"
    asked = PredictionsRequest(model_name="m", input={"data": b"hang", "file": str(begun).encode()})
    futures = [server.predictions.future(asked, timeout=60)]
    wait_for(begun.exists)
    futures.append(call(server, "UnregisterModel", model_name="m"))
    wait_for(lambda: call(server, "ListModels").result().msg == NOTHING)
    server = begin()
    assert call(server, "ListModels").result().msg == NOTHING
    assert stored(tmp_path) == []
