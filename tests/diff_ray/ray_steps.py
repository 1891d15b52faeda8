"""What a case is made of: one call, or calls at once, and what must have happened before.

Data only. What must not live here: the cases themselves (ray_cases*.py), sending them (ray_calls.py). `{folder}` in a
word is a folder of the tool's own, in which gates are made: a program's `wait {folder}/x`
goes on once the file is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

UNARY = ("Unary", "Bare", "bare", "Plain", "Shape", "Generates", "NoParameter", "TwoParameters", "Lacking", "Seen")
UNARY += ("__call__", "OnlySecond", "unary", "Nothing")
CLIENT_STREAMS = ("Collect", "PlainCollect", "LackingCollect")
BIDI = ("Chat", "LackingChat")
PATIENCE_S = 40.0


@dataclass(frozen=True)
class Step:
    """One call of `service`/`method` of the package diffray, or of a full path.

    words: the `word` of each message; unary and server-streaming calls have one. raw: bytes in place of the messages.
    sizes: bytes of `data` of each message. lockstep: an answer is awaited after each message of a bidi stream; unless
    `closes`, the stream is left open. deadline_s: the client's. cancel_after: cancel once so many answers are there;
    cancel_when: once this gate has been reached.
    held: calls before it, each of which has reached its gate (`{folder}/NAME`) when the case is sent; gates open once
    the case's calls have ended, or `opens_after` of them; `opens`: also those of the case itself.
    copies: so many of the same at once; their answers are sorted. together: other calls at the same time.
    until: repeat until this text is in the answer (10 s).
    order: what the script is told instead of a call.
    """

    name: str
    rpc: str = "Main/Unary"
    words: tuple[str, ...] = ("say hello",)
    sizes: tuple[int, ...] = ()
    raw: bytes | None = None
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    lockstep: bool = False
    closes: bool = True
    deadline_s: float | None = None
    cancel_after: int | None = None
    cancel_when: str = ""
    held: tuple[Step, ...] = ()
    opens_after: int | None = None
    opens: bool = False
    copies: int = 1
    together: tuple[Step, ...] = ()
    until: str = ""
    order: dict[str, Any] | None = None
    compared: bool = True


@dataclass(frozen=True)
class Scenario:
    """Calls in their order. `apps`: the applications that run when it begins, by name, and no others.

    fresh: they are started anew. timeout_s: the server's `request_timeout_s`, a server of its own for each value.
    """

    name: str
    apps: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    fresh: bool = False
    timeout_s: float = 0.0


def one(name: str, word: str = "say hello", rpc: str = "Main/Unary", **more: Any) -> Step:
    """A call with one message."""
    return Step(name, rpc, (word,), **more)


def stream(name: str, word: str, rpc: str = "Main/Stream", **more: Any) -> Step:
    """A call with one message and many answers."""
    return Step(name, rpc, (word,), **more)


def many(name: str, *words: str, rpc: str = "Main/Collect", **more: Any) -> Step:
    """A call with many messages."""
    return Step(name, rpc, words, **more)


def chat(name: str, *words: str, rpc: str = "Main/Chat", **more: Any) -> Step:
    """A conversation, in lockstep unless said otherwise."""
    return Step(name, rpc, words, **({"lockstep": True} | more))


def seen(name: str, since: str = "", until: str = "", **more: Any) -> Step:
    """What the application has marked since a mark."""
    return Step(name, "Main/Seen", (since,), until=until, **more)


def told(name: str, do: str, /, **order: Any) -> Step:
    """An order to the script."""
    return Step(name, order={"do": do, **order})


def given(*pairs: tuple[str, str | bytes]) -> dict[str, Any]:
    """Metadata."""
    return {"metadata": pairs}
