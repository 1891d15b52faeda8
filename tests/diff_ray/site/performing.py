"""What the applications do: a call's `word` is a program, of steps that are separated by ";".

say TEXT | code NAME | details TEXT | trailers KEY VALUE ... | compression NAME | tell WHAT | raise KIND TEXT |
sleep SECONDS | wait FILE (makes FILE.begun, goes on once FILE is there) | mark TEXT (Seen gives it) | exit

The same file runs under Ray Serve and under ours; only its imports differ. What must not live here: deployments.
"""

import asyncio
import json
import os
import time
from pathlib import Path

import grpc
from failures import EXCEPTIONS
from ray import serve

POLL_S = 0.02
TOLD_NAMES = [
    "auth_context",
    "code",
    "details",
    "request_id",
    "application",
    "multiplexed_model_id",
    "traceparent",
    "tracestate",
    "invocation_metadata",
    "peer",
    "peer_identities",
    "peer_identity_key",
    "trailing_metadata",
    "set_code",
    "set_details",
    "set_compression",
    "set_trailing_metadata",
]
OF_THE_CLIENT = ("user-agent", "grpc-accept-encoding", "accept-encoding")


def perform_one(verb, rest, context, seen):
    """A step that does not block."""
    match verb:
        case "code":
            context.set_code(getattr(grpc.StatusCode, rest))
        case "details":
            context.set_details(rest)
        case "compression":
            context.set_compression(getattr(grpc.Compression, rest))
        case "trailers":
            context.set_trailing_metadata(pairs(rest))
        case "raise":
            kind, _, text = rest.partition(" ")
            raise EXCEPTIONS[kind](text)
        case "mark":
            seen.append(rest)
        case "exit":
            os._exit(3)
        case _:
            raise NotImplementedError(f"no step {verb!r}")


def pairs(text):
    """Metadata from words: KEY VALUE KEY VALUE."""
    words = text.split()
    both = zip(words[::2], words[1::2], strict=True)
    return [(key, value.encode() if key.endswith("-bin") else value) for key, value in both]


def steps(word):
    """A program's steps."""
    return [(verb, rest) for verb, _, rest in (one.strip().partition(" ") for one in word.split(";"))]


async def perform(word, context, seen):
    """Run a program; gives what it says."""
    for verb, rest in steps(word):
        if verb == "say":
            yield rest
        elif verb == "tell":
            yield tell(rest, context)
        elif verb in ("sleep", "wait"):
            try:
                await (asyncio.sleep(float(rest)) if verb == "sleep" else gate(rest))
            except BaseException as error:
                seen.append(type(error).__name__)
                raise
        else:
            perform_one(verb, rest, context, seen)


def perform_plainly(word, seen):
    """The same without a loop, and without a context."""
    for verb, rest in steps(word):
        if verb == "say":
            yield rest
        elif verb == "sleep":
            time.sleep(float(rest))
        elif verb == "wait":
            begun(rest)
            while not Path(rest).exists():
                time.sleep(POLL_S)
        else:
            perform_one(verb, rest, None, seen)


def begun(name):
    """Tell the one who holds the gate."""
    Path(f"{name}.begun").touch()


async def gate(name):
    """Wait for a file."""
    begun(name)
    while not os.path.exists(name):  # noqa: ASYNC240, PTH110  # bounded by the caller
        await asyncio.sleep(POLL_S)


def tell(what, context):  # noqa: PLR0911  # a table
    """What a context says, as JSON."""
    match what:
        case "names":
            return json.dumps({name: callable(getattr(context, name, None)) for name in TOLD_NAMES})
        case "metadata":
            return json.dumps(
                sorted([key, shown(value)] for key, value in context.invocation_metadata() if key not in OF_THE_CLIENT)
            )
        case "types":
            return json.dumps(
                [type(context.invocation_metadata()).__name__, type(context.trailing_metadata()).__name__]
            )
        case "kind":
            return type(context).__name__
        case "peer":
            return context.peer().partition(":")[0]
        case "auth":
            return json.dumps(sorted(context.auth_context()))
        case "model":
            return serve.get_multiplexed_model_id()
        case "replica":
            replica = serve.get_replica_context()
            return f"{replica.app_name} {replica.deployment}"
        case _:
            return json.dumps(shown(getattr(context, what)()))


def shown(value):
    """A value as JSON takes it."""
    if isinstance(value, bytes):
        return f"bytes {value!r}"
    if isinstance(value, (list, tuple)):
        return [shown(one) for one in value]
    return value.name if isinstance(value, grpc.StatusCode) else value
