"""What a model's code finds around it: variables, folders, packages of its own; each model apart from the others."""

# ruff: noqa: SIM300  # expected == actual

import os
import signal
from pathlib import Path

import grpc
import pytest
from serving import HERE, SECRET, Serving, wait_for
from wheels import make_wheel

from actorserve import config
from actorserve.actors import archives, model_store
from actorserve.actors.environment import (
    install_environment,
    search_path,
    shown,
    start_environment,
    with_venv,
    worker_environment,
)
from actorserve.actors.messages import Environment, ModelSpec
from actorserve.actors.unpacking import Unpacking
from actorserve.errors import ConfigError
from actorserve.testing import descendants, is_alive

TOOL = f'handler = "handlers_for_tests:Tool"\nsource = "{HERE}"\n'
SERVERS = {"PATH": "/bin", "LC_ALL": "C", "A_TOKEN": "t", "WANTED": "w", "PIP_INDEX_URL": "u", "HTTPS_PROXY": "p"}
GIVEN = Environment(env={"OMP_NUM_THREADS": "3", "OWN": "o"}, pass_env=("WANTED", "ABSENT"))


# --- decided purely -----------------------------------------------------------------------------


def test_a_worker_sees_what_is_kept_passed_and_set():
    """A few names are kept, `pass_env` passes what there is, `env` wins; nothing else of the server is there."""
    seen = worker_environment(SERVERS, GIVEN, threads=2)

    assert {
        "PATH": "/bin",
        "LC_ALL": "C",
        "WANTED": "w",
        "OWN": "o",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    } == seen


def test_what_a_start_reads():
    """Variables that are read when a process starts ask for a forkserver of their own; others can wait for the fork."""
    model = Environment(env={"LD_PRELOAD": "x.so", "COLOUR": "red"}, pass_env=("MALLOC_ARENA_MAX", "PATH"))

    assert {"LD_PRELOAD": "x.so", "MALLOC_ARENA_MAX": "1"} == start_environment({"MALLOC_ARENA_MAX": "1"}, model)


def test_an_inherited_environment():
    """With `inherits` a worker sees all that is not hidden; what is read at a start is there when it starts."""
    servers = {**SERVERS, "LD_PRELOAD": "x.so", "AWS_KEY": "k", "NOT_AWS_KEY": "n"}
    seen = shown(servers, ["AWS_.*", "A_TOKEN"])

    assert {"AWS_KEY", "A_TOKEN"} == servers.keys() - seen.keys()
    assert seen.items() <= worker_environment(seen, inherits=True).items()
    assert {"LD_PRELOAD": "x.so"} == start_environment(seen, Environment(), inherits=True)
    assert "WANTED" not in worker_environment(seen)
    assert "A_TOKEN" not in worker_environment(seen, Environment(pass_env=("A_TOKEN",)), inherits=True)


def test_what_pip_sees():
    """The installation finds its index and its proxy, which workers do not see; secrets are seen by neither."""
    assert {"PIP_INDEX_URL", "HTTPS_PROXY"} == install_environment(SERVERS).keys() - worker_environment(SERVERS).keys()
    assert "/v/bin:/bin" == with_venv(SERVERS, "/v/bin")["PATH"]
    assert {"PATH": "/v/bin"} == with_venv({}, "/v/bin")


def test_the_order_of_folders():
    """The config file's folder, the model's own, then `path`; each once."""
    model = ModelSpec("m", "1", "a:B", Path("/m"), environment=Environment(path=("/x", "/c", "/y")))

    assert ["/c", "/m", "/x", "/y"] == search_path(("/c",), model)


def spec_of(folder, **keys):
    """A model's spec from the keys of a config file in `folder`."""
    model = model_store.parse({"handler": "a:B", **keys})
    unpacking = Unpacking(folder / "cache", archives.Limits())
    return model_store.of_config("m", model, folder=folder, unpacking=unpacking)


def test_relative_paths_mean_the_file_that_says_them(tmp_path):
    """In config.toml relative to its folder, in model.toml to the model's."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.toml").write_text('path = ["lib"]\nrequirements = "needs.txt"\n')
    said_there = spec_of(tmp_path, source="m").environment
    said_here = spec_of(tmp_path, source="m", path=["lib"], requirements=["./x.whl"]).environment

    assert ((f"{tmp_path}/m/lib",), f"{tmp_path}/m/needs.txt") == (said_there.path, said_there.requirements_file)
    assert ((f"{tmp_path}/lib",), ("./x.whl",), str(tmp_path)) == (
        said_here.path,
        said_here.requirements,
        said_here.base,
    )


@pytest.mark.parametrize("line", ['isolation = "thread"', 'pass_env = ["A_SECRET"]'])
def test_a_folder_cannot_open_the_server(tmp_path, line):
    """Only the config file may say that a handler runs in the server, or sees its variables: not model.toml."""
    (tmp_path / "model.toml").write_text(line)
    with pytest.raises(ConfigError, match="only the config file may set it"):
        spec_of(tmp_path.parent, source=tmp_path.name)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"env": {"A=B": "c"}}, "no name of an environment variable"),
        ({"env": {"A": "\0"}}, "zero byte"),
        ({"pass_env": [""]}, "no name of an environment variable"),
        ({"install_timeout_s": 0}, "more than 0"),
        ({"isolation": "thread", "requirements": ["x"]}, "it cannot have requirements"),
        ({"isolation": "thread", "env": {"A": "b"}}, "it cannot have env"),
        ({"isolation": "thread", "max_worker_memory_mb": 9}, "max_worker_memory_mb cannot be kept"),
    ],
)
def test_wrong_keys(keys, text):
    """What cannot be is an error that says so."""
    with pytest.raises(ConfigError, match=text):
        config.parse({"models": {"m": {"handler": "a:B", **keys}}}, folder=Path.cwd())


# --- real workers ---------------------------------------------------------------------------------


def command_of(pid):
    """A process's command line, as a list; empty once it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@pytest.fixture
def start(tmp_path):
    """Start servers whose cache is the test's own; whatever happens they are gone afterwards."""
    started = []

    def begin(models, extra="", **given):
        server = f'cache_dir = "{tmp_path / "cache"}"\n{extra}'
        started.append(Serving(tmp_path, models, server=server, **given))
        return started[-1]

    yield begin
    for serving in started:
        serving.kill()


def test_variables_and_folders(start, tmp_path):
    """`env`, `pass_env` and `path` reach a worker and no other; a module in `path` is found."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "pear.py").write_text("VERSION = 'beside'")
    keys = 'path = ["lib"]\nenv = { COLOUR = "red", MALLOC_ARENA_MAX = "1" }\npass_env = ["PASSED"]\n'
    serving = start(f"[models.a]\n{TOOL}{keys}[models.b]\n{TOOL}", environment={"PASSED": "on"})
    a, b = serving.ask("a", "environment"), serving.ask("b", "environment")

    assert ("red", "on") == (a["os"]["COLOUR"], a["os"]["PASSED"])
    assert "MALLOC_ARENA_MAX=1" in a["kernel"]  # as the process started, not as it was told after its fork
    assert not {"COLOUR", "PASSED", "MALLOC_ARENA_MAX"} & b["os"].keys()
    assert SECRET not in str([a, b])
    folders = [str(tmp_path), str(HERE), str(tmp_path / "lib")]
    assert folders == serving.ask("a", "path")[:3]
    assert "beside" == serving.ask("a", "module pear")[0]
    assert "absent" == serving.ask("b", "module pear")[0]
    serving.close()


def test_all_variables_but_the_hidden(start):
    """With `inherit_env` workers see the server's environment, all of it from their start, but not what is hidden."""
    extra = 'inherit_env = true\nhide_env = ["HIDDEN_.*"]\n'
    given = {"COLOUR": "red", "MALLOC_ARENA_MAX": "1", "HIDDEN_KEY": "h"}
    serving = start(f"[models.a]\n{TOOL}", extra=extra, environment=given)
    seen = serving.ask("a", "environment")

    assert "red" == seen["os"]["COLOUR"]
    assert "MALLOC_ARENA_MAX=1" in seen["kernel"]
    assert "HIDDEN_KEY" not in str(seen)
    assert 1 == len(serving.forkservers())
    serving.close()


def test_packages_of_a_models_own(start, tmp_path):
    """Two models with two versions of one module, and a third that has neither; a second server builds nothing."""
    for version in ("1.0", "2.0"):
        make_wheel(tmp_path, "fruit", version)
    (tmp_path / "needs.txt").write_text("./fruit-2.0-py3-none-any.whl\n")
    models = (
        f'[models.one]\n{TOOL}requirements = ["./fruit-1.0-py3-none-any.whl"]\n'
        f'[models.two]\n{TOOL}requirements = "needs.txt"\n[models.none]\n{TOOL}'
    )
    serving = start(models)
    found = {name: serving.ask(name, "module fruit") for name in ("one", "two", "none")}

    assert {"one": "1.0", "two": "2.0", "none": "absent"} == {name: version for name, (version, _) in found.items()}
    venvs = tmp_path / "cache" / "venvs"
    assert all(Path(found[name][1]).is_relative_to(venvs) for name in ("one", "two"))
    path = serving.ask("one", "environment")["os"]["PATH"].split(":")
    assert (Path(path[0]) / "fruit-tool").exists()
    assert 3 == len(serving.forkservers())
    serving.close()
    built = sorted(venvs.iterdir())
    again = start(models)
    assert "2.0" == again.ask("two", "module fruit")[0]
    assert not [line for line in again.log() if "building the venv" in str(line["event"])]
    again.close()
    assert built == sorted(venvs.iterdir())


def test_a_worker_is_replaced_in_its_own_environment(start, tmp_path):
    """The next incarnation is forked by the same forkserver; if that is killed, another one comes."""
    make_wheel(tmp_path, "fruit", "1.0")
    serving = start(f'[models.one]\n{TOOL}requirements = ["./fruit-1.0-py3-none-any.whl"]\n')
    before, parent, *_ = serving.ask("one", "identity")
    os.kill(before, signal.SIGKILL)
    assert ["1.0", parent] == [serving.ask("one", "module fruit")[0], serving.ask("one", "identity")[1]]
    os.kill(parent, signal.SIGKILL)
    wait_for(lambda: not is_alive(parent))
    wait_for(lambda: "READY" in dict(serving.states("one")))
    assert "1.0" == serving.ask("one", "module fruit")[0]
    assert parent != serving.ask("one", "identity")[1]
    serving.close()


def test_requirements_that_cannot_be_had(start, tmp_path):
    """FAILED at the first attempt with pip's last words; nothing half-built is taken for whole the next time."""
    make_wheel(tmp_path, "fruit", "1.0", needs="no-such-package-anywhere")
    serving = start(
        f'[models.bad]\n{TOOL}requirements = ["--no-index", "./fruit-1.0-py3-none-any.whl"]\n'
        f'[models.gone]\n{TOOL}requirements = "gone.txt"\n[models.good]\n{TOOL}'
    )
    for model, text in (
        ("bad", "No matching distribution found for no-such-package-anywhere"),
        ("gone", "gone.txt cannot be read"),
    ):
        ((state, reason),) = wait_for(lambda: [s for s in serving.states(model) if s[0] == "FAILED"])  # noqa: B023
        assert ("FAILED", True) == (state, text in reason), reason
        with pytest.raises(grpc.RpcError, match="cannot be installed"):
            serving.ask(model)
    assert serving.ask("good")
    serving.close()
    assert not list((tmp_path / "cache" / "venvs").rglob("complete"))
    make_wheel(tmp_path, "fruit", "1.0")
    mended = start(f'[models.bad]\n{TOOL}requirements = ["--no-index", "./fruit-1.0-py3-none-any.whl"]\n')
    assert "1.0" == mended.ask("bad", "module fruit")[0]
    mended.close()


def test_an_installation_that_takes_too_long(start, tmp_path):
    """It is killed after `install_timeout_s` with all that it started, and the model is FAILED and says so."""
    os.mkfifo(tmp_path / "slow.txt")  # nobody ever writes
    keys = f'requirements = ["-r {tmp_path}/slow.txt"]\ninstall_timeout_s = 5\n'
    serving = start(f"[models.slow]\n{TOOL}{keys}[models.good]\n{TOOL}")
    pips = wait_for(lambda: [pid for pid in descendants(serving.popen.pid) if "pip" in command_of(pid)])
    ((_, reason),) = wait_for(lambda: [s for s in serving.states("slow") if s[0] == "FAILED"])
    assert "install_timeout_s = 5" in reason
    wait_for(lambda: not any(map(is_alive, pips)), within=5)  # killed by then; dying takes the kernel a moment
    assert [serving.forkserver()] == serving.forkservers()
    serving.close()


def test_a_stop_ends_an_installation(start, tmp_path):
    """A server that drains while packages are installed ends the installation too."""
    os.mkfifo(tmp_path / "slow.txt")
    serving = start(f'[models.slow]\n{TOOL}requirements = ["-r {tmp_path}/slow.txt"]\n')
    wait_for(lambda: any("building the venv" in str(line["event"]) for line in serving.log()))
    serving.close()
