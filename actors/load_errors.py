"""Which exceptions of a handler's `load` no restart can mend: code or weights that are absent, wrong or corrupt.

The rules, in their order, for the exception and then for what it was raised `from`:
1. Want of memory may pass, whoever says so: never permanent.
2. A LoadFailed says itself; every other error of actorserve is permanent.
3. An OSError goes by its errno: what is not there or not to be read is permanent, what is busy or full may pass.
   torch says EINVAL for an archive that was cut short.
4. Types that mean wrong code or wrong bytes are permanent, and so are torch's texts for weights that do not fit.
5. Whatever else was raised inside a reader of files (torch.load, torch.jit.load, safetensors, pickle ...): corrupt.
Everything else may pass and is tried again, up to `max_restarts`.
What must not live here: imports of those libraries; it runs in every worker, before a handler has loaded any.
"""

from __future__ import annotations

import errno
import re
import struct
import zlib
from collections.abc import Iterator
from types import TracebackType

from actorserve.errors import ActorserveError, LoadFailed

WRONG = (
    ImportError,
    AttributeError,
    NameError,
    SyntaxError,
    LookupError,
    ValueError,
    TypeError,
    AssertionError,
    NotImplementedError,
    EOFError,
    struct.error,
    zlib.error,
)
WRONG_NAMES = frozenset(
    ("UnpicklingError", "BadZipFile", "BadGzipFile", "LZMAError", "TarError", "SafetensorError", "GGUFError")
)
WRONG_ERRNOS = frozenset(
    (
        errno.ENOENT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.EINVAL,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENODEV,
    )
)
WRONG_TEXTS = re.compile(
    r"Error\(s\) in loading state_dict|PytorchStreamReader|[Cc]orrupt|unexpected EOF|EOF while parsing"
    r"|at line \d+ column \d+"  # a JSON file, as the tokenizers say it
)
NO_MEMORY = re.compile(r"out of memory|can.t allocate memory|CUDA error|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
READERS = (
    "torch.serialization",
    "torch._weights_only_unpickler",
    "torch.jit._serialization",
    "torch.export",
    "safetensors",
    "pickle",
    "zipfile",
    "tarfile",
    "numpy.lib",
)
DEEPEST = 10


def is_permanent(error: BaseException) -> bool:
    """Whether another try would end in the same way."""
    chain = list(_chain(error))
    if any(_wants_memory(one) for one in chain):
        return False
    for one in chain:
        if isinstance(one, LoadFailed):
            return one.permanent
        if _is_wrong(one):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and what it was raised from."""
    one: BaseException | None = error
    for _ in range(DEEPEST):
        if one is None:
            return
        yield one
        one = one.__cause__


def _wants_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and NO_MEMORY.search(_text(error)) is not None


def _is_wrong(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in WRONG_ERRNOS
    if isinstance(error, (ActorserveError, *WRONG)):
        return True
    if any(kind.__name__ in WRONG_NAMES for kind in type(error).__mro__):
        return True
    plain = isinstance(error, RuntimeError) or type(error) is Exception
    return (plain and WRONG_TEXTS.search(_text(error)) is not None) or _is_readers(error.__traceback__)


def _is_readers(trace: TracebackType | None) -> bool:
    """Whether a reader of files is among those that were running."""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if any(module == reader or module.startswith(f"{reader}.") for reader in READERS):
            return True
        trace = trace.tb_next
    return False


def _text(error: BaseException) -> str:
    """An exception's text, whatever its class does."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # the handler's class
        return ""
