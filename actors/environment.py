"""What a worker's environment and `sys.path` are, decided purely (contracts §4).

A worker sees a few names of the server's environment, what its model passes on (`pass_env`) and sets (`env`),
and never the rest: no secret of the server reaches model code unless the config file names it.
What must not live here: processes, files, the building of a venv (install_main.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from actorserve.actors.messages import Environment, ModelSpec

KEPT = frozenset(("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH"))
KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HF_")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
READ_AT_START = ("LD_", "PYTHON", "MALLOC_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "ATEN_")
"""Prefixes of what the loader, the interpreter, or torch read once, before a fork could still change it."""
FOR_PIP = ("PIP_", "SSL_CERT_", "REQUESTS_CA_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def shown(environment: Mapping[str, str], hidden: Collection[str]) -> dict[str, str]:
    """The server's environment without what no worker may see: names that match a pattern of `hidden` as a whole."""
    patterns = [re.compile(pattern) for pattern in hidden]
    return {name: value for name, value in environment.items() if not any(one.fullmatch(name) for one in patterns)}


def worker_environment(
    environment: Mapping[str, str], model: Environment | None = None, *, threads: int = 1, inherits: bool = False
) -> dict[str, str]:
    """What a worker's environment is, given the server's; the model's `env` wins over everything.

    `inherits`: all of the server's is kept.
    """
    model = Environment() if model is None else model
    kept = {
        name: value for name, value in environment.items() if inherits or name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    passed = {name: environment[name] for name in model.pass_env if name in environment}
    return (
        kept
        | ONE_THREAD
        | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        | passed
        | dict(model.env)
    )


def start_environment(environment: Mapping[str, str], model: Environment, *, inherits: bool = False) -> dict[str, str]:
    """What must be there when a model's process starts: a fork of another's forkserver is too late.

    `inherits`: as in `worker_environment`.
    """
    passed = environment if inherits else model.pass_env
    given = {name: environment[name] for name in passed if name in environment} | dict(model.env)
    return {name: value for name, value in sorted(given.items()) if name.startswith(READ_AT_START)}


def forkserver_environment(environment: Mapping[str, str], start: Mapping[str, str]) -> dict[str, str]:
    """A forkserver's environment: a worker's, always with one thread (design §3)."""
    return worker_environment(environment) | dict(start) | ONE_THREAD


def install_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip and the packages that it builds see: a worker's environment, and where pip finds its index."""
    found = {name: value for name, value in environment.items() if name.upper().startswith(FOR_PIP)}
    return worker_environment(environment) | found


def with_venv(environment: Mapping[str, str], bin_folder: str) -> dict[str, str]:
    """The environment with a venv's commands first on PATH."""
    path = environment.get("PATH")
    return {**environment, "PATH": f"{bin_folder}:{path}" if path else bin_folder}


def search_path(folders: tuple[str, ...], model: ModelSpec) -> list[str]:
    """What comes before site-packages on a worker's `sys.path`, in order: the config file's folder, the model's
    own folder, then its `path`.
    """
    return list(dict.fromkeys((*folders, str(model.model_dir), *model.environment.path)))
