"""The command line: `python -m actorserve [FILE]`, and the console script `actorserve`.

Exit codes: 0 drained, 1 failed to start, 2 bad config or usage, 130 killed by a second signal. A fault of
the operator is one clear line, never a traceback. TorchServe's flags and files are taken as they are
(docs/torchserve-configuration.md). What must not live here: how a server runs (server.py), what a file means.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from actorserve import config
from actorserve.command_line import Told, flags_of, load, parser
from actorserve.errors import ConfigError, StartFailed

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES, MAPPED_BYTES = 32 << 20, 8 << 20
MARKER = "Model server started."
"""The line on stdout that TorchServe's users wait for."""
DRAINED, FAILED, USAGE, KILLED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the console script; exits with the codes above."""
    if sys.platform == "win32":
        sys.exit("actorserve: the server does not run on Windows; actorserve.client does")
    arguments = sys.argv[1:] if argv is None else list(argv)
    converts = arguments[:1] == ["convert"]
    options = parser().parse_args(arguments[converts:])
    try:
        sys.exit(convert(options) if converts else run(options, arguments))
    except ConfigError as error:
        told = error.key == "" or error.key.startswith("--")
        where = "" if told or options.path is None else f"{options.path}: "
        complain(f"{where}{error}")
        sys.exit(USAGE)
    except StartFailed as error:
        complain(str(error))
        sys.exit(FAILED)
    except KeyboardInterrupt:  # before the server takes signals: nothing runs yet that could drain
        sys.exit(KILLED)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Do what is asked; the exit code. ConfigError, StartFailed."""
    if options.stop:
        from actorserve import background  # noqa: PLC0415  # as below: nothing is loaded that is not needed

        print("Model server stopped." if background.stop() else "Model server is not running.")  # noqa: T201
        return DRAINED
    if options.start and not (options.foreground or options.check):
        from actorserve import background  # noqa: PLC0415

        return background.start(arguments)
    settings, told = load(options)
    if options.check:
        check(settings)
        return DRAINED
    return serve(settings, options, told)


def convert(options: argparse.Namespace) -> int:
    """Print config.properties as a config.toml. ConfigError."""
    from actorserve import torchserve_config as torchserve  # noqa: PLC0415

    options.path = path = options.file or torchserve.find_file(options.ts_config, os.environ)
    if path is not None and not torchserve.is_properties(path, is_found=options.file is None):
        raise ConfigError("", f"{path} is no config.properties")
    found = torchserve.read(path, flags_of(options))
    for override in options.set:
        config.set_key(found.content, override)
    settings = config.parse(found.content, folder=torchserve.folder_of(path), optional=found.optional)
    if found.optional:
        found = torchserve.without(found, broken(settings.of_models(found.optional)))
    sys.stdout.write(torchserve.to_toml(found, str(path or "TorchServe's flags")))
    return DRAINED


def broken(settings: config.Config) -> dict[str, ConfigError]:
    """The models that a server would leave out at its start, and why. Archives are unpacked: this may take long."""
    from actorserve import log  # noqa: PLC0415  # as below
    from actorserve.configured import ledger_here, model_specs, unpacking_of  # noqa: PLC0415

    log.configure(settings.log)  # stdout is for the configuration alone
    found: dict[str, ConfigError] = {}
    ledger = ledger_here()
    unpacking = unpacking_of(settings, ledger)

    def note(entry: str, error: ConfigError) -> None:
        unpacked = re.escape(f"{unpacking.root}/") + "[0-9a-f]+"  # which is gone when this is read
        found[entry] = ConfigError(
            error.key, re.sub(unpacked, lambda _: str(settings.models[entry].source), error.text)
        )

    try:
        model_specs(settings, ledger, unpacking, note)
    finally:
        unpacking.close()
    return found


def complain(text: str) -> None:
    """Tell the operator what is wrong, in one line."""
    print(f"actorserve: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201  # this is the command line


def check(settings: config.Config) -> None:
    """Print the whole configuration, defaults included; ConfigError if a model's folder is wrong."""
    from actorserve import log  # noqa: PLC0415
    from actorserve.configured import ledger_here, model_specs, unpacking_of  # noqa: PLC0415  # --help needs no floor

    log.configure(settings.log)  # stdout is for the configuration alone
    ledger = ledger_here()
    unpacking = unpacking_of(settings, ledger)
    try:
        model_specs(settings, ledger, unpacking)
    finally:
        unpacking.close()
    print(settings.model_dump_json(indent=2))  # noqa: T201


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without what makes it slow: Ping is to be answered within a second of the command.

    What imports make stays, so looking for garbage meanwhile is in vain (a fifth of the time), then and later;
    structlog loads rich, where it is installed, for tracebacks that are not printed here (a tenth).
    """
    gc.disable()
    absent = "rich" not in sys.modules
    if absent:
        sys.modules["rich"] = None  # type: ignore[assignment]  # Python's own way to say: cannot be imported
    try:
        yield
    finally:
        if absent:
            del sys.modules["rich"]
        gc.freeze()
        gc.enable()


def keep_free_memory() -> None:
    """Have malloc keep up to KEPT_BYTES that are free, rather than give them back at once (mallopt(3)).

    A call of 1 MB frees and asks for that much several times; that the kernel takes its pages away and clears new ones
    each time was a third of what the call costs. What the operator says in the environment goes first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
    if mallopt is not None:
        if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
            mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
            mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def serve(settings: config.Config, options: argparse.Namespace, told: Told) -> int:
    """Run the server in this process; the exit code. StartFailed."""
    from actorserve.background import PidFile, Readiness  # noqa: PLC0415  # as above

    keep_free_memory()
    readiness = Readiness(options.ready_fd)
    with quick_imports():
        import structlog  # noqa: PLC0415  # as above
        import trio  # noqa: PLC0415

        from actorserve import log  # noqa: PLC0415
        from actorserve.console import Console, say  # noqa: PLC0415

    log.configure(settings.log)
    told.log(structlog.get_logger("actorserve"))

    def on_ready() -> None:
        if told.is_torchserve:
            say(MARKER)
        readiness.tell()

    pid_file = PidFile()
    if options.start:
        pid_file.take()
    try:
        reread = None if options.path is None else lambda: load(options)[0]
        return trio.run(Console(settings, reread, on_ready=on_ready).run)
    finally:
        pid_file.leave()


if __name__ == "__main__":
    main()
