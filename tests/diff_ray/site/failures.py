"""What a program's step "raise KIND TEXT" raises. What must not live here: where it is raised."""

import asyncio
import threading


class OwnError(Exception):
    """One of the application's own."""


class TwoArgumentsError(Exception):
    """Its constructor takes more than pickle gives back."""

    def __init__(self, text, more):
        super().__init__(text)
        self.more = more


class LockedError(Exception):
    """It cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class BaseError(BaseException):
    """No Exception."""


class SilentError(Exception):
    """Its text cannot be had."""

    def __str__(self):
        raise ValueError("no text")


def caused(text):
    """One with a cause."""
    error = ValueError(text)
    error.__cause__ = KeyError("the cause")
    return error


EXCEPTIONS = {
    "ValueError": ValueError,
    "Bare": lambda _: ValueError(),
    "KeyError": KeyError,
    "TypeError": TypeError,
    "OSError": lambda text: OSError(2, text),
    "NotImplementedError": NotImplementedError,
    "AssertionError": AssertionError,
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "TimeoutError": TimeoutError,
    "CancelledError": asyncio.CancelledError,
    "OwnError": OwnError,
    "TwoArgumentsError": lambda text: TwoArgumentsError(text, 1),
    "LockedError": LockedError,
    "SilentError": SilentError,
    "BaseError": BaseError,
    "Group": lambda text: ExceptionGroup(text, [ValueError("one"), KeyError("two")]),
    "Caused": caused,
    "Lines": lambda text: ValueError(f"{text}\nsecond line"),
    "Umlaut": lambda _: ValueError("Überlauf 100%"),
    "Long": lambda _: ValueError("x" * 5000),
    "SystemExit": lambda _: SystemExit(3),
}
