"""The command line: `python -m actorserve [FILE]`, and the console script `actorserve`.

Exit codes: 0 drained, 1 failed to start, 2 bad config or usage, 130 killed by a second signal. A fault of
the operator is one clear line, never a traceback. What must not live here: how a server runs (server.py).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from actorserve import __version__, config
from actorserve.errors import ConfigError, StartFailed

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES, MAPPED_BYTES = 16 << 20, 8 << 20
DRAINED, FAILED, USAGE, KILLED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    arguments = argparse.ArgumentParser(
        prog="actorserve",
        description="A PyTorch model server that speaks gRPC. Without FILE it serves the packaged digits model.",
        epilog="Exit codes: 0 drained, 1 failed to start, 2 bad config or usage, 130 killed by a second signal. "
        "Every key of the config file: docs/configuration.md",
    )
    arguments.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the configuration, a config.toml")
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
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the console script; exits with the codes above."""
    if sys.platform == "win32":
        sys.exit("actorserve: the server does not run on Windows; actorserve.client does")
    options = parser().parse_args(argv)
    try:
        settings = config.load(options.file, options.set)
        if options.check:
            check(settings)
            sys.exit(DRAINED)
        sys.exit(serve(settings))
    except ConfigError as error:
        where = f"{options.file}: " if options.file and error.key not in ("", "--set") else ""
        complain(f"{where}{error}")
        sys.exit(USAGE)
    except StartFailed as error:
        complain(str(error))
        sys.exit(FAILED)
    except KeyboardInterrupt:  # before the server takes signals: nothing runs yet that could drain
        sys.exit(KILLED)


def complain(text: str) -> None:
    """Tell the operator what is wrong, in one line."""
    print(f"actorserve: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201  # this is the command line


def check(settings: config.Config) -> None:
    """Print the whole configuration, defaults included; ConfigError if a model's folder is wrong."""
    from actorserve.server import ledger_here, model_specs, unpacking_of  # noqa: PLC0415  # --help needs no floor

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


def serve(settings: config.Config) -> int:
    """Run the server in this process; the exit code."""
    keep_free_memory()
    with quick_imports():
        import trio  # noqa: PLC0415  # as above

        from actorserve import log  # noqa: PLC0415
        from actorserve.console import Console  # noqa: PLC0415

    log.configure(settings.log)
    return trio.run(Console(settings).run)


if __name__ == "__main__":
    main()
