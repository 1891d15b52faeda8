"""TorchServe's command line as its users have it: config.properties, tokens, --start and --stop, by plain grpcio."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from running import PATIENCE_S, SERVICE, Running, running

from actorserve import background, testing, torchserve_config
from actorserve.background import NAME, PidFile
from actorserve.errors import ConfigError, StartFailed
from actorserve.properties import Flags
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.proto.management_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    ManagementResponse,
    RegisterModelRequest,
)

MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
HANDLER = "def handle(data, context):\n    return [bytes(row['data']) for row in data] if data else None\n"
REFUSED = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
FILE = """
model_store = store
load_models = noop.mar
default_workers_per_model = 1
grpc_inference_port = 0
grpc_management_port = 0
number_of_netty_threads = 4
colour = red
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working folder with a store that torch-model-archiver has filled, and a config.properties."""
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "h.py").write_text(HANDLER)
    archiver = [str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", "noop", "--version", "1.0"]
    subprocess.run([*archiver, "--handler", "h.py", "--export-path", "store"], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "config.properties").write_text(FILE)
    return tmp_path


def keys(folder: Path) -> dict[str, str]:
    return {kind: entry["key"] for kind, entry in json.loads((folder / "key_file.json").read_text()).items()}


def addresses(server: Running) -> tuple[str, str]:
    """Of inference and of management, from the first line."""
    found = server.wait_for(r"reflection on (127\.0\.0\.1:\d+); management on (127\.0\.0\.1:\d+)")
    return found[1], found[2]


def metadata(key: str | None) -> list[tuple[str, str]]:
    return [] if key is None else [("authorization", f"Bearer {key}")]


def predict(address: str, key: str | None = None) -> bytes:
    with grpc.insecure_channel(address) as channel:
        return ask(channel, key)


def ask(channel: grpc.Channel, key: str | None) -> bytes:
    call = channel.unary_unary(
        f"{SERVICE}/Predictions", PredictionsRequest.SerializeToString, PredictionResponse.FromString
    )
    request = PredictionsRequest(model_name="noop", input={"data": b"hello"})
    return call(request, timeout=PATIENCE_S, metadata=metadata(key)).prediction


def manage(address: str, rpc: str, request: object, key: str | None = None) -> str:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"{MANAGEMENT}/{rpc}", lambda message: message.SerializeToString(), ManagementResponse.FromString
        )
        return call(request, timeout=PATIENCE_S, metadata=metadata(key)).msg


def refusal(function: object, *arguments: object) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        function(*arguments)
    return caught.value


def test_config_properties(place):
    """A config.properties is served: tokens are asked for, the model API is off, TorchServe's marker is a line of its
    own, keys without effect are named once, and the key file goes with the server.
    """
    with running("config.properties", folder=place) as server:
        server.wait_for(r"(?m)^Model server started\.$")
        inference, management = addresses(server)
        assert (place / "key_file.json").stat().st_mode & 0o777 == 0o600
        own = keys(place)
        assert predict(inference, own["inference"]) == b"hello"
        for key in (None, "wrong", own["management"], own["API"]):
            assert refusal(predict, inference, key).code() in REFUSED
        assert "noop" in manage(management, "ListModels", ListModelsRequest(limit=10), own["management"])
        register = RegisterModelRequest(url="noop.mar")
        off = refusal(manage, management, "RegisterModel", register, own["management"])
        assert off.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "Model API disabled" in off.details()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_end() == 0
    assert not (place / "key_file.json").exists()
    assert (place / "state").is_dir()
    named = [line for line in server.lines["err"] if "keys without effect" in line]
    assert [json.loads(line)["keys"] for line in named] == ["number_of_netty_threads, colour"]
    assert not [key for key in own.values() if key in server.text("err") + server.text("out")]


def two_versions(place: Path) -> None:
    (place / "h2.py").write_text(HANDLER.replace("bytes(row['data'])", "b'two: ' + bytes(row['data'])"))
    archiver = [str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", "noop", "--version", "2.0"]
    made = [*archiver, "--handler", "h2.py", "--export-path", "."]
    subprocess.run(made, cwd=place, check=True, timeout=60)
    (place / "noop.mar").rename(place / "store" / "noop-v2.mar")


def described(address: str, version: str = "") -> list[tuple[str, str]]:
    request = DescribeModelRequest(model_name="noop", model_version=version)
    return [(one["modelName"], one["modelVersion"]) for one in json.loads(manage(address, "DescribeModel", request))]


def test_two_archives_of_one_name(place):
    """Both versions are served. The first that load_models names is the default; another file's defaultVersion is
    taken up by SIGHUP.
    """
    two_versions(place)
    text = FILE.replace("noop.mar", "noop.mar,noop-v2.mar") + "disable_token_authorization = true\n"
    (place / "config.properties").write_text(text)
    with running("config.properties", folder=place) as server:
        server.wait_for(r"(?m)^Model server started\.$")
        inference, management = addresses(server)
        assert described(management) == [("noop", "1.0")]
        assert described(management, "all") == [("noop", "1.0"), ("noop", "2.0")]
        assert predict(inference) == b"hello"
        (place / "config.properties").write_text(text + 'models = {"noop": {"2.0": {"defaultVersion": true}}}\n')
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("configuration applied", "err")
        assert "rollout begun" not in server.text("err")
        assert described(management) == [("noop", "2.0")]
        assert predict(inference) == b"two: hello"


def test_tls(place):
    """enable_grpc_ssl: gRPC has TLS, with the certificate and the key that the file names."""
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(place / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(place / "cert.pem"))
    tls = "enable_grpc_ssl = true\ncertificate_file = cert.pem\nprivate_key_file = key.pem\n"
    (place / "config.properties").write_text(FILE + tls)
    with running("config.properties", folder=place) as server:
        server.wait_for(r"(?m)^Model server started\.$")
        inference, _ = addresses(server)
        key = keys(place)["inference"]
        assert refusal(predict, inference, key).code() is grpc.StatusCode.UNAVAILABLE
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
        with grpc.secure_channel(inference, credentials) as channel:
            assert ask(channel, key) == b"hello"


def test_files_that_are_wrong(place):
    """A certificate that is not there, and a file that is none of properties: one line that names whose it is."""
    tls = "enable_grpc_ssl = true\ncertificate_file = cert.pem\nprivate_key_file = key.pem\n"
    (place / "config.properties").write_text(FILE + tls)
    with running("config.properties", folder=place) as server:
        assert server.wait_end() == 1
        assert f"actorserve: listeners.inference.tls: there is no file {place / 'cert.pem'}\n" in server.text("err")
    (place / "config.properties").write_text("a=\\uzzzz")
    with running("config.properties", folder=place) as server:
        assert server.wait_end() == 2
        assert server.text("err").startswith("actorserve: config.properties: it is no file of properties: ")


def test_all_that_is_in_the_store(place):
    """With `all`, an archive whose manifest is fine and whose content is not is left out, with a warning that says why;
    --check prints nothing but the configuration on stdout meanwhile. One that is named ends the start.
    """
    with zipfile.ZipFile(place / "store" / "climbs.mar", "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelName": "climbs", "handler": "h.py"}}')
        file.writestr("../h.py", "")
    (place / "store" / "empty").mkdir()
    with running("--check", "--models", "all", folder=place) as server:
        assert server.wait_end() == 0
        assert set(json.loads(server.text())["models"]) == {"noop", "climbs", "empty"}
    with running("--models", "all", folder=place) as server:
        server.wait_for(r"(?m)^Model server started\.$")
        left = {
            found["key"]: found["why"]
            for found in map(json.loads, server.lines["err"])
            if found["event"] == "model left out"
        }
        assert re.search(r"noop +1\.0 +READY", server.text())
    assert set(left) == {"models.climbs.source", "models.empty"}
    assert left["models.climbs.source"].endswith("member '../h.py' leads out of the archive")
    with running("--models", "climbs.mar", folder=place) as server:
        assert server.wait_end() == 2
        assert "models.climbs.source: " in server.text("err")


def test_flags_alone(place):
    """Without a file the flags will do; they win over config.properties of the working folder."""
    (place / "config.properties").write_text("grpc_inference_port=0\ngrpc_management_port=0\nmodel_store=nowhere\n")
    flags = ("--model-store", "store", "--models", "mine=noop.mar", "--ncs", "--dt", "--enable-model-api")
    with running("--foreground", *flags, "--log-config", "log4j2.xml", folder=place) as server:
        server.wait_for(r"(?m)^Model server started\.$")
        _, management = addresses(server)
        assert "mine" in manage(management, "ListModels", ListModelsRequest(limit=10))
        said = manage(management, "RegisterModel", RegisterModelRequest(url="noop.mar", model_name="second"))
        assert said.startswith('Model "second" Version: 1.0 registered with 0 initial workers')
    assert not (place / "key_file.json").exists()
    assert not (place / "state").exists()
    assert "--log-config" in server.text("err")


class Command:
    """The command line in a folder, with its own place for pid files; output goes to files, since servers stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid_file = folder / NAME
        self.started: list[int] = []
        self.calls = 0

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Run it; the exit code, and what it has printed until then."""
        self.calls += 1
        out, err = (self.folder / f"{self.calls}.{name}" for name in ("out", "err"))
        with out.open("wb") as to_out, err.open("wb") as to_err:
            code = subprocess.run(
                [sys.executable, "-m", "actorserve", *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
                env={**os.environ, "TMPDIR": str(self.folder)},
                timeout=PATIENCE_S,
                check=False,
            ).returncode
        if self.pid_file.exists():
            self.started.append(int(self.pid_file.read_text()))
        return code, out.read_text(), err.read_text()


@pytest.fixture
def command(place: Path) -> Iterator[Command]:
    made = Command(place)
    yield made
    for pid in made.started:
        if testing.is_alive(pid) and b"actorserve" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def test_start_and_stop(command):
    """--start returns once the server is ready, in a session of its own; a second one is refused; --stop returns once
    it has drained, with all that it made; then there is none.
    """
    code, out, _ = command("--start", "--ts-config", "config.properties")
    assert (code, out.count("\nModel server started.\n")) == (0, 1)
    pid = int(command.pid_file.read_text())
    assert os.getsid(pid) == pid
    family = testing.descendants(pid)
    address = out.partition("reflection on ")[2].partition(";")[0]
    assert predict(address, keys(command.folder)["inference"]) == b"hello"

    code, _, err = command("--start", "--ts-config", "config.properties")
    assert code == 1
    assert f"actorserve: a server runs already (pid {pid}, by {command.pid_file}): stop it with --stop first" in err
    assert predict(address, keys(command.folder)["inference"]) == b"hello"

    assert command("--stop") == (0, "Model server stopped.\n", "")
    assert not [one for one in (pid, *family) if testing.is_alive(one)]
    assert not command.pid_file.exists()
    assert not (command.folder / "key_file.json").exists()
    assert command("--stop") == (0, "Model server is not running.\n", "")


def test_start_that_fails(command):
    """--start gives the exit code and the line of a server that cannot start, and leaves no pid file."""
    code, _, err = command("--start", "--ts-config", "none.properties")
    assert (code, err) == (2, "actorserve: there is no file none.properties\n")
    (command.folder / "wrong.properties").write_text("model_store=store\njob_queue_size=x\n")
    code, _, err = command("--start", "--ts-config", "wrong.properties")
    line = 'actorserve: wrong.properties: job_queue_size: "x" is wrong: it must be a whole number\n'
    assert (code, err) == (2, line)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = f"model_store=store\ngrpc_management_port=0\ngrpc_inference_port={port}\n"
        (command.folder / "config.properties").write_text(text)
        code, _, err = command("--start")
    assert code == 1
    assert f"port {port} is in use" in err
    assert not command.pid_file.exists()
    assert not (command.folder / "key_file.json").exists()


def test_start_that_is_given_up(command):
    """Ctrl-C while --start waits ends the server that loads for ever, too."""
    os.mkfifo(command.folder / "gate")
    (command.folder / "slow.py").write_text(f"open({str(command.folder / 'gate')!r}).read()\n")
    model = '[models.slow]\nhandler = "slow:Slow"\n'
    (command.folder / "config.toml").write_text(f'[listeners.a]\naddress="127.0.0.1:0"\nservices=["health"]\n{model}')
    with running("--start", "config.toml", folder=command.folder, env={"TMPDIR": str(command.folder)}) as server:
        server.wait_for("0 of 1 models ready")
        pid = int(command.pid_file.read_text())
        assert testing.is_alive(pid)
        server.process.send_signal(signal.SIGINT)
        assert server.wait_end() == 130
    assert not testing.is_alive(pid)
    assert not command.pid_file.exists()


def test_start_with_toml(command):
    """--start and --stop work with a config.toml as well; flags that make sense there count, the other is refused."""
    listeners = '[listeners.a]\naddress = "127.0.0.1:0"\nservices = ["management"]\n'
    (command.folder / "config.toml").write_text(f"[server]\nmodel_api = false\n{listeners}")
    flags = ("--model-store", "store", "--models", "noop.mar", "--enable-model-api", "--ncs")
    code, out, _ = command("config.toml", "--start", *flags)
    assert code == 0
    address = out.partition("management on ")[2].partition("\n")[0]
    said = manage(address, "RegisterModel", RegisterModelRequest(url="noop.mar", model_name="second"))
    assert said.startswith('Model "second"')
    assert command("--stop")[0] == 0
    assert not (command.folder / "state").exists()

    code, _, err = command("config.toml", "--dt")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("actorserve: --disable-token-auth: is for config.properties")
    shutil.copy(command.folder / "store" / "noop.mar", command.folder / "store" / "same.mar")
    code, out, _ = command("config.toml", "--check", "--model-store", "store", "--models", "all")
    assert (code, set(json.loads(out)["models"])) == (0, {"noop"})
    (command.folder / "wrong.toml").write_text("models = 3\n")
    code, _, err = command("wrong.toml", "--check", "--model-store", "store", "--models", "noop.mar")
    assert (code, err) == (2, "actorserve: wrong.toml: models: 3 is wrong: it must be a table\n")
    code, _, err = command("config.toml", "--models", "noop.mar")
    assert (code, err) == (2, "actorserve: --models: needs --model-store beside a config.toml\n")
    code, _, err = command("config.toml", "--ts-config", "config.properties")
    assert (code, err) == (2, "actorserve: --ts-config: names a second file beside config.toml: choose one\n")


def test_check_and_set(command):
    """--check prints what a config.properties comes to, and --set names config.toml's keys."""
    code, out, _ = command("config.properties", "--check", "--set", "server.grace_s=5")
    found = json.loads(out)
    assert (code, found["server"]["grace_s"], found["server"]["model_api"]) == (0, 5, False)
    assert found["models"]["noop"]["source"] == str(command.folder / "store" / "noop.mar")


def test_a_number_that_is_another_process(command):
    """A pid file that an ended server has left is no reason to signal whoever has its number now."""
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        command.pid_file.write_text(f"{bystander.pid}\n")
        assert command("--stop") == (0, "Model server is not running.\n", "")
        assert bystander.poll() is None
        assert not command.pid_file.exists()
    finally:
        bystander.kill()
        bystander.communicate()


def test_pid_file(tmp_path):
    """One has it at a time; it holds the number; who leaves removes it; a link is not followed."""
    path = tmp_path / "pid"
    first, second = PidFile(path), PidFile(path)
    first.take()
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(StartFailed, match=rf"runs already \(pid {os.getpid()}"):
        second.take()
    first.leave()
    first.leave()
    assert not path.exists()
    second.take()
    second.leave()
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(StartFailed, match="cannot be written"):
        first.take()
    assert not (tmp_path / "precious").exists()


def test_a_pid_file_of_another_user(tmp_path, monkeypatch):
    """The temporary folder is everybody's: a file that another user has put there is neither written nor obeyed, so
    that none of this user's processes is signalled for it.
    """
    monkeypatch.setattr(background.tempfile, "gettempdir", lambda: str(tmp_path))
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    path = tmp_path / NAME
    path.write_text(f"{bystander.pid}\n")
    monkeypatch.setattr(background.os, "geteuid", lambda: os.getuid() + 1)
    try:
        with path.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            for refused in (PidFile().take, background.stop):
                with pytest.raises(StartFailed, match="another user's"):
                    refused()
        assert bystander.poll() is None
        assert path.read_text() == f"{bystander.pid}\n"
    finally:
        bystander.kill()
        bystander.communicate()


@pytest.mark.parametrize(
    ("store", "models", "key"), [("s" * 5000, ("all",), "model_store"), (".", ("m" * 5000,), "load_models")]
)
def test_names_that_no_file_can_have(tmp_path, monkeypatch, store, models, key):
    """What the file system refuses of a store or an archive is an error that names TorchServe's key."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="File name too long") as caught:
        torchserve_config.read(None, Flags(model_store=store, models=models))
    assert caught.value.key == key


def test_config_toml_needs_nothing_of_it(tmp_path):
    """A config.toml is served without loading what TorchServe's files need."""
    (tmp_path / "config.toml").write_text("")
    code = (
        "import sys; from actorserve.command_line import load, parser\n"
        "load(parser().parse_args(['config.toml']))\n"
        "print({'javaproperties', 'tomlkit', 'actorserve.translation'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert ran.stdout == b"set()\n"
