"""The words about its configuration: for each mistake one line that names key, value and what would be right."""

import json
import subprocess
import sys

import pytest

from actorserve import __version__, config
from actorserve.__main__ import main


def run(capsys, *arguments):
    """Run the command line in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return ended.value.code, out, err


LISTENER = '[listeners.a]\naddress = "127.0.0.1:7070"\n'
MODEL = '[models.m]\nhandler = "mine:Model"\n'

MISTAKES = {
    "[server]\ngrace = 3": "server.grace: unknown key; did you mean grace_s?",
    "[sever]\ngrace_s = 3": "sever: unknown key; did you mean server?",
    "[server]\nzzz = 3": f"server.zzz: unknown key; known here: {', '.join(config.Server.model_fields)}",
    MODEL + "model_dir = 'x'": f"models.m.model_dir: unknown key; known here: {', '.join(config.Model.model_fields)}",
    MODEL + "batchsize = 3": "models.m.batchsize: unknown key; did you mean batch_size?",
    MODEL + "workers = { mn = 3 }": "models.m.workers.mn: unknown key; did you mean min?",
    "[models.server]\nhandler = 'a:B'\nbatchsize = 3": "models.server.batchsize: unknown key; did you mean batch_size?",
    '[server]\ngrace_s = "3"': 'server.grace_s: "3" is wrong: it must be a number',
    "[server]\ngrace_s = true": "server.grace_s: true is wrong: it must be a number",
    "[server]\ngrace_s = -1": "server.grace_s: -1 is wrong: it must be at least 0",
    "[server]\ngrace_s = 1e9": "server.grace_s: 1000000000.0 is wrong: it must be at most 86400",
    "[server]\nstable_after_s = 0": "server.stable_after_s: 0 is wrong: it must be more than 0",
    MODEL
    + "startup_timeout_s = inf": "models.m.startup_timeout_s: inf is wrong: it must be a number, and not inf or nan",
    MODEL + "batch_size = 2.5": "models.m.batch_size: 2.5 is wrong: it must be a whole number",
    MODEL + "version = 1.0": 'models.m.version: 1.0 is wrong: it must be text, in quotes: "..."',
    MODEL + "workers = 2": "models.m.workers: 2 is wrong: it must be a table",
    MODEL + "source = 2": 'models.m.source: 2 is wrong: it must be a path, in quotes: "..."',
    MODEL + "workers = { min = 2, max = 1 }": "models.m.workers: max = 1 is less than min = 2",
    MODEL + "target_ongoing_requests = 0": "models.m.target_ongoing_requests: 0 is wrong: it must be more than 0",
    MODEL + "upscale_delay_s = -1": "models.m.upscale_delay_s: -1 is wrong: it must be at least 0",
    MODEL + "downscale_delay_s = -1": "models.m.downscale_delay_s: -1 is wrong: it must be at least 0",
    MODEL + "threads = 0": 'models.m.threads: 0 is wrong: it must be 1 to 1024, or "auto"',
    MODEL + 'threads = "many"': 'models.m.threads: "many" is wrong: it must be 1 to 1024, or "auto"',
    MODEL + "threads = 2.5": "models.m.threads: 2.5 is wrong: it must be a whole number",
    MODEL + "threads = true": "models.m.threads: true is wrong: it must be a whole number",
    MODEL + "device = 3": 'models.m.device: 3 is wrong: it must be text, in quotes: "..."',
    MODEL + 'device = "gpu"': (
        'models.m.device: "gpu" is no device: "cpu", "auto", "cuda:0", or a list like ["cuda:0", "cuda:1"]'
    ),
    MODEL + 'device = ["cuda:0", "cpu"]': (
        'models.m.device: "cpu" is no device: "cpu", "auto", "cuda:0", or a list like ["cuda:0", "cuda:1"]'
    ),
    MODEL + "device = []": (
        'models.m.device: a list of none is no device: "cpu", "auto", "cuda:0", or a list like ["cuda:0", "cuda:1"]'
    ),
    MODEL + 'device = ["cuda:1", "cuda:1"]': "models.m.device: a device is named twice: cuda:1, cuda:1",
    MODEL + "options = { since = 2024-01-01 }": (
        "models.m.options: option since = 2024-01-01 cannot be handed to a worker; "
        "text, numbers, true, false, lists and tables can, so write it as text"
    ),
    "[models.m]": 'models.m: handler is missing: name one as "module:Class"',
    '[models.m]\nhandler = "mine"': (
        'models.m.handler: handler \'mine\' is not "module:Class", for example "my_package.my_module:MyHandler"'
    ),
    '[models."a b"]\nhandler = "mine:Model"': (
        "models: the name 'a b' may hold letters, digits, '_', '.' and '-' only, at most 255 of them"
    ),
    MODEL + '[models.x]\nname = "m"\nhandler = "a:B"': (
        "models: m and x are both m version 1.0: give one of them another version, or name"
    ),
    MODEL + '[models.x]\nname = "m"\nversion = "1.0"\nsource = "x.mar"': (
        "models: m and x are both m version 1.0: give one of them another version, or name"
    ),
    MODEL + 'default = true\n[models.x]\nname = "m"\nversion = "2"\nhandler = "a:B"\ndefault = true': (
        "models: m and x both say default = true of m: one version is the default"
    ),
    MODEL + "default = 1": "models.m.default: 1 is wrong: it must be true or false",
    MODEL + 'name = "a b"': (
        "models.m.name: \"a b\" is wrong: it must be at most 255 letters, digits, '_', '.' and '-', "
        "and begin with a letter or a digit"
    ),
    f'[models.{"m" * 256}]\nhandler = "mine:Model"': (
        f"models: the name '{'m' * 80}' may hold letters, digits, '_', '.' and '-' only, at most 255 of them"
    ),
    MODEL + f'version = "{"1" * 256}"': (
        f"models.m.version: \"{'1' * 76}... is wrong: it must be at most 255 letters, digits, '_', '.' and '-', "
        "and begin with a letter or a digit"
    ),
    'optional = ["m"]': "optional: unknown key",
    "models = 3": "models: 3 is wrong: it must be a table",
    '[log]\nlevel = "loud"': 'log.level: "loud" is wrong: it must be "debug", "info", "warning" or "error"',
    '[log]\naccess = "yes"': 'log.access: "yes" is wrong: it must be true or false',
    LISTENER: (
        'listeners.a.services: is missing. A list of `"inference"`, `"management"`, `"health"` '
        '(probes: docs/health.md), `"reflection"` (for grpcurl and its like), `"servicers"` (your own: '
        'docs/bring-your-own-schema.md), `"predict"` and `"ray"` (Ray Serve\'s own: docs/applications.md). '
        '`"applications"`, for scripts, is for Unix sockets in a folder that nobody else may enter.'
    ),
    LISTENER + 'services = ["infrence"]': (
        'listeners.a.services: "infrence" is wrong: it must be "inference", "management", "health", "reflection", '
        '"servicers", "predict", "ray" or "applications"'
    ),
    LISTENER + 'services = "inference"': 'listeners.a.services: "inference" is wrong: it must be a list: [...]',
    LISTENER + "services = []": "listeners.a.services: [] is wrong: it must be a list of at least one",
    '[listeners.a]\naddress = "localhost"\nservices = ["inference"]': (
        'listeners.a.address: address \'localhost\' is not "host:port" or "unix:PATH", '
        'for example "127.0.0.1:7070" or "[::1]:7070"'
    ),
    '[listeners.a]\naddress = []\nservices = ["inference"]': "listeners.a.address: at least one address is needed",
    '[listeners.a]\naddress = "0.0.0.0:7070"\nservices = ["inference"]': (
        "listeners.a: address '0.0.0.0:7070' is not loopback and has no tls and no tokens_file; "
        "set both, or insecure = true to serve it all the same"
    ),
    '[listeners.a]\naddress = ["127.0.0.1:1", "[::]:2"]\nservices = ["inference"]': (
        "listeners.a: address '[::]:2' is not loopback and has no tls and no tokens_file; "
        "set both, or insecure = true to serve it all the same"
    ),
}


@pytest.mark.parametrize("content", MISTAKES)
def test_mistake(capsys, tmp_path, content):
    """A mistake in the file is exit code 2 and one line: the file, the key, the value, and what would be right."""
    file = tmp_path / "config.toml"
    file.write_text(content)
    assert run(capsys, "--check", str(file)) == (2, "", f"actorserve: {file}: {MISTAKES[content]}\n")


def test_insecure_is_said(capsys, tmp_path):
    """An address that is not loopback is taken where `insecure = true` says so."""
    file = tmp_path / "config.toml"
    file.write_text('[listeners.a]\naddress = "0.0.0.0:7070"\nservices = ["inference"]\ninsecure = true\n')
    code, out, err = run(capsys, "--check", str(file))
    assert (code, err) == (0, "")
    assert json.loads(out)["listeners"]["a"]["address"] == "0.0.0.0:7070"


def test_missing_file(capsys, tmp_path):
    """A file that is not there, a folder, and one that is not TOML are one line each, and exit code 2."""
    assert run(capsys, str(tmp_path / "no.toml")) == (2, "", f"actorserve: there is no file {tmp_path / 'no.toml'}\n")
    assert run(capsys, str(tmp_path)) == (2, "", f"actorserve: {tmp_path} is a folder, not a file\n")
    file = tmp_path / "bad.toml"
    for content in (b"[server\n", b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = " + b"1" * 5000):
        file.write_bytes(content)
        code, out, err = run(capsys, str(file))
        assert (code, out) == (2, "")
        assert err.startswith(f"actorserve: {file} is not TOML: ")
        assert err.count("\n") == 1


def test_model_folder(capsys, tmp_path):
    """A model's folder that is not there, and a `model.toml` that is wrong, name the model and the file."""
    file = tmp_path / "config.toml"
    file.write_text('[models.m]\nsource = "folder"\n')
    folder = tmp_path / "folder"
    expected = f"actorserve: {file}: models.m.source: there is no folder or archive {folder}\n"
    assert run(capsys, "--check", str(file)) == (2, "", expected)
    folder.mkdir()
    wrongs = {
        "": f"models.m.handler: is missing, and {folder / 'model.toml'} does not name one",
        "handler": f"models.m.source: {folder / 'model.toml'} is not TOML: ",
        "handler = 'a:B'\nbatch_size = 0": (
            f"models.m.batch_size: 0 is wrong: it must be at least 1 (in {folder / 'model.toml'})"
        ),
        "source = '..'": f"models.m.source: does not belong into {folder / 'model.toml'}: the folder is the source",
        "name = 3": f"models.m.name: 3 in {folder / 'model.toml'} is not text",
    }
    for content, text in wrongs.items():
        (folder / "model.toml").write_text(content)
        code, out, err = run(capsys, "--check", str(file))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"actorserve: {file}: {text}")
    (folder / "model.toml").write_text("handler = 'a:B'\n")
    assert run(capsys, "--check", str(file))[0] == 0


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('source = "circle/m"', "source"),
        (f'source = "{"n" * 5000}"', "source"),
        ('handler = "a:B"\npath = ["circle"]', "path"),
        ('handler = "a:B"\nrequirements = "circle"', "requirements"),
    ],
)
def test_what_the_file_system_refuses(capsys, tmp_path, line, key):
    """Links in a circle and names that are too long are one line that names the key."""
    (tmp_path / "circle").symlink_to("circle")
    file = tmp_path / "config.toml"
    file.write_text(f"[models.m]\n{line}\n")
    code, out, err = run(capsys, "--check", str(file))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"actorserve: {file}: models.m.{key}: ")
    assert "cannot be used" in err


def test_set(capsys):
    """`--set` changes one key alone, of a default listener too; its value is TOML, or else text."""
    code, out, _ = run(
        capsys,
        "--check",
        "--set=listeners.inference.address=127.0.0.1:0",
        "--set=server.grace_s=5",
        "--set=log.level=debug",
        "--set=models.digits.workers={min = 2}",
        '--set=models."with.dots".handler=mine:Model',
    )
    shown = json.loads(out)
    assert code == 0
    assert shown["listeners"]["inference"]["address"] == "127.0.0.1:0"
    assert shown["listeners"]["inference"]["services"] == ["inference", "health", "reflection"]
    assert shown["listeners"]["management"]["address"] == "127.0.0.1:7071"
    assert (shown["server"]["grace_s"], shown["log"]["level"]) == (5, "debug")
    assert shown["models"]["digits"]["workers"]["min"] == 2
    assert shown["models"]["with.dots"]["handler"] == "mine:Model"


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("grace", "--set: 'grace' is not key=value, for example server.grace_s=5"),
        ("=5", "--set: '=5' is not key=value, for example server.grace_s=5"),
        ("a b=5", "--set: 'a b=5' is not key=value, for example server.grace_s=5"),
        ("server.gracs=5", "server.gracs: unknown key; did you mean grace_s?"),
        ("server.grace_s=soon", 'server.grace_s: "soon" is wrong: it must be a number'),
        (
            "models.digits.handler.x=5",
            'models.digits.handler.x: cannot be set: handler is "actorserve.handlers.digits:Digits" and not a table',
        ),
    ],
)
def test_wrong_set(capsys, override, text):
    """A wrong `--set` is exit code 2 and one line."""
    assert run(capsys, f"--set={override}") == (2, "", f"actorserve: {text}\n")


def test_check_prints_the_whole_configuration(capsys, tmp_path):
    """`--check` prints every key with its default as JSON, which is a valid configuration itself; nothing starts."""
    file = tmp_path / "config.toml"
    file.write_text('[models.m]\nhandler = "no_such_module:Model"\n')
    code, out, err = run(capsys, "--check", str(file))
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert set(shown) == set(config.Config.model_fields) - config.NOT_OF_THE_FILE
    assert set(shown["models"]["m"]) == set(config.Model.model_fields)
    assert set(shown["listeners"]) == {"inference", "management"}


def test_interrupted_before_it_serves(capsys, monkeypatch):
    """Ctrl-C while the configuration is read is exit code 130 and no traceback."""

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "load", interrupt)
    assert run(capsys) == (130, "", "")


def test_version_help_and_usage(capsys):
    """`--version` and `--help` are exit code 0, a wrong option 2; help names every option and the exit codes."""
    assert run(capsys, "--version") == (0, f"actorserve {__version__}\n", "")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for word in ("FILE", "--version", "--check", "--set", "Exit codes", "docs/configuration.md"):
        assert word in out
    code, out, err = run(capsys, "--chek")
    assert (code, out) == (2, "")
    assert "usage: actorserve" in err


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_quick_answers_load_nothing(option, tmp_path):
    """`--version` and `--help` come from a real process that has loaded neither trio nor a floor of the server."""
    code = (
        "import atexit, sys; from actorserve.__main__ import main; "
        "atexit.register(lambda: print(sorted({'trio', 'torch', 'actorserve.server'} & set(sys.modules)))); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, option], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.endswith("[]\n")
