"""Echo, driven directly. What must not live here: a server. The source is handlers/echo.py's own docstring."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from drive import ask, loaded

from actorserve.errors import BadInput, LoadFailed
from actorserve.handlers.base import Request, missing_methods
from actorserve.handlers.echo import Echo


def test_gives_bytes_back_as_they_are() -> None:
    """Any bytes come back unchanged, `data` before `body`, the empty ones too."""
    sent = [{"data": bytes(range(256))}, {"body": b"b"}, {"data": b"", "body": b"unused"}]

    assert [bytes(range(256)), b"b", b""] == ask(Echo(), *sent)


def test_one_item_without_input_fails_alone() -> None:
    """An item without `data` and `body` fails with a text that names both; its neighbours are answered."""
    good, bad = ask(Echo(), {"data": b"x"}, {"dta": b"x"})

    assert good == b"x"
    assert isinstance(bad, BadInput)
    assert str(bad) == "data: missing: send the input under the key 'data' (or 'body'); got 'dta'"


@pytest.mark.parametrize(("count", "copies"), [(None, 1), (b"0", 0), (b"3", 3)])
def test_streams_count_copies(count: bytes | None, copies: int) -> None:
    """A stream has `count` copies, one without it."""
    inputs = {"data": b"x"} | ({} if count is None else {"count": count})

    assert [b"x"] * copies == list(Echo().generate(Request(inputs)))


@pytest.mark.parametrize("count", [b"", b"many", b"1.5", b"-1", b"1000001", b"\xff", b"9" * 5000])
def test_refuses_a_bad_count(count: bytes) -> None:
    """A count that is no whole number, or out of range, is the caller's fault and names the key."""
    with pytest.raises(BadInput, match=r"^count: "):
        next(Echo().generate(Request({"data": b"x", "count": count})))


def test_sleeps_as_told(tmp_path: Path) -> None:
    """`delay_s` is slept once a batch, not once an item."""
    echo = loaded(Echo(), tmp_path, delay_s=0.02)

    began = time.monotonic()
    ask(echo, *[{"data": b"x"}] * 50)

    assert 0.02 <= time.monotonic() - began < 0.5


@pytest.mark.parametrize("options", [{"delay_s": -1}, {"delay_s": "1"}, {"delay_s": True}, {"dealy_s": 1}])
def test_refuses_bad_options(tmp_path: Path, options: dict[str, object]) -> None:
    """An option of a wrong type, out of range or misspelt stops the load and is named."""
    with pytest.raises(LoadFailed, match=rf"^options\.{next(iter(options))}: "):
        loaded(Echo(), tmp_path, **options)


def test_imports_no_torch() -> None:
    """Importing it loads neither torch nor numpy: it must cost nothing."""
    code = "import sys, actorserve.handlers.echo; print('torch' in sys.modules, 'numpy' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == "False False\n"


def test_is_a_handler() -> None:
    """It has what the contract asks for."""
    assert missing_methods(Echo()) is None
