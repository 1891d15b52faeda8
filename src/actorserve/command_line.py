"""What the command line takes, and the configuration that it names: config.toml's or TorchServe's.

Nothing is loaded here that `--help` or a config.toml does not need. What must not live here: what a file means
(config.py, torchserve_config.py), exit codes and the server's run (__main__.py).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actorserve import __version__, config
from actorserve.errors import ConfigError

PROPERTIES = (".properties", ".cfg")
WITHOUT_EFFECT = (("--workflow-store",), ("--log-config",), ("--cpp-log-config",), ("--plugins-path", "--ppath"))
"""TorchServe's flags that are taken and named in the log, with their other names."""


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    arguments = argparse.ArgumentParser(
        prog="actorserve",
        description="A PyTorch model server that speaks gRPC. Without FILE it serves the packaged digits model.",
        epilog="Exit codes: 0 drained, 1 failed to start, 2 bad config or usage, 130 killed by a second signal. "
        "Every key of the config file: docs/configuration.md; TorchServe's: docs/torchserve-configuration.md. "
        "`actorserve convert config.properties` prints the config.toml that it comes to.",
    )
    arguments.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="the configuration: a config.toml, or a config.properties"
    )
    arguments.add_argument("--version", action="version", version=f"actorserve {__version__}")
    arguments.add_argument(
        "--check", action="store_true", help="validate the configuration, print it with all defaults, exit"
    )
    arguments.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the file; may be repeated. For example --set server.grace_s=5",
    )
    add_torchserve(arguments.add_argument_group("TorchServe's", "taken as `torchserve` takes them"))
    arguments.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    arguments.set_defaults(path=None)
    return arguments


def add_torchserve(group: argparse._ArgumentGroup) -> None:
    """TorchServe's own flags."""
    group.add_argument("--start", action="store_true", help="start in the background; returns once it is ready")
    group.add_argument("--stop", action="store_true", help="stop the server that --start has started, and wait")
    group.add_argument("--foreground", action="store_true", help="with --start: stay in the foreground")
    group.add_argument("--ts-config", type=Path, metavar="FILE", help="as FILE")
    group.add_argument("--model-store", metavar="FOLDER", help="where models are loaded from")
    group.add_argument("--models", nargs="+", default=[], metavar="[NAME=]ARCHIVE", help='what is loaded; or "all"')
    group.add_argument("--no-config-snapshots", "--ncs", action="store_true", help="remember nothing")
    group.add_argument("--disable-token-auth", "--dt", action="store_true", help="ask for no tokens")
    group.add_argument("--enable-model-api", action="store_true", help="let models be registered and unregistered")
    for flag, *further in WITHOUT_EFFECT:
        group.add_argument(flag, *further, metavar="PATH", help="accepted, without effect")


@dataclass(frozen=True)
class Told:
    """What is to be said of a configuration: what has no effect in it, and what else."""

    ignored: Sequence[str] = ()
    notes: Sequence[str] = ()
    is_torchserve: bool = False

    def log(self, logger: Any) -> None:
        """Name all that has no effect in one line, and each note in its own."""
        if self.ignored:
            logger.warning("keys without effect here", keys=", ".join(self.ignored))
        for note in self.notes:
            logger.warning("configuration", note=note)


def load(options: argparse.Namespace) -> tuple[config.Config, Told]:
    """The configuration that the command line names; `options.path` is its file, then. ConfigError."""
    if options.file and options.ts_config:
        raise ConfigError("--ts-config", f"names a second file beside {options.file}: choose one")
    if not is_torchserve(options):
        options.path = options.file
        return config.load(options.path, options.set), Told()
    from actorserve import torchserve_config as torchserve  # noqa: PLC0415  # config.toml needs nothing of it

    options.path = path = options.file or torchserve.find_file(options.ts_config, os.environ)
    if path is not None and not torchserve.is_properties(path, is_found=options.file is None):
        found = torchserve.add_flags(config.read_toml(path), flags_of(options))
        settings = config.complete(found.content, path, options.set, found.optional)
    else:
        settings, found = torchserve.load(path, flags_of(options), options.set)
    return settings, Told(found.ignored_in_words(), found.notes, is_torchserve=True)


def is_torchserve(options: argparse.Namespace) -> bool:
    """Whether a file or a flag of TorchServe's is given."""
    named = options.file is not None and options.file.suffix.lower() in PROPERTIES
    flags = ("start", "foreground", "ts_config", "model_store", "models", "no_config_snapshots", "disable_token_auth",
             "enable_model_api", *(flag[2:].replace("-", "_") for flag, *_ in WITHOUT_EFFECT))  # fmt: skip
    return named or any(getattr(options, flag) for flag in flags)


def flags_of(options: argparse.Namespace) -> Any:
    """TorchServe's flags as they are given, as `properties.Flags`."""
    from actorserve.properties import Flags  # noqa: PLC0415  # as above

    return Flags(
        model_store=options.model_store,
        models=tuple(options.models),
        no_config_snapshots=options.no_config_snapshots,
        disable_token_auth=options.disable_token_auth,
        enable_model_api=options.enable_model_api,
        further=tuple(flag for flag, *_ in WITHOUT_EFFECT if getattr(options, flag[2:].replace("-", "_"))),
    )
