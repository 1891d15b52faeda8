"""Sends cases with plain grpcio, and writes down what came: JSON, with what is the server's own replaced by its name.

What must not live here: which cases there are, what two answers may differ in.
"""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from ray_steps import BIDI, CLIENT_STREAMS, PATIENCE_S, UNARY, Scenario, Step

POLL_S = 0.02
WAIT_S = 30.0
UNTIL_S = 10.0
HELD_S = 5.0
LONGEST = 2000
OWN = (  # what no two runs of Ray share: form -> the word that replaces it
    (re.compile(r"pid=\d+, ip=[\d.]+, actor_id=\w+"), "(process)"),
    (re.compile(r"(?<=actor_id: )\w+|(?<=\tpid: )\d+|(?<=\tip: )[\d.]+"), "(own)"),
    (re.compile(r"(?<=SERVE_REPLICA::)\S+"), "(replica)"),
    (re.compile(r'(?<=File ")/\S+/(?=lib/python3)'), "{python}/"),
)
Answer = dict[str, Any]


def _strings(data: bytes) -> list[str]:
    """The values of a message that has but strings in field 1."""
    message, found = memoryview(data), []
    while message:
        assert message[0] == 0x0A
        length = message[1]
        found.append(bytes(message[2 : 2 + length]).decode())
        message = message[2 + length :]
    return found


OF_RAY: dict[str, Callable[[bytes], Any]] = {
    "/ray.serve.RayServeAPIService/ListApplications": lambda data: {"application_names": _strings(data)},
    "/ray.serve.RayServeAPIService/Healthz": lambda data: {"message": _strings(data)},
}


@dataclass
class Peer:
    """A running server. `messages`: the module of the cases' messages; `tell`: how the script is told; `names`: text of
    the server's own -> the placeholder that stands for it.
    """

    channel: grpc.Channel
    folder: Path
    messages: Any
    tell: Callable[[dict[str, Any]], dict[str, Any]]
    names: dict[str, str] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)

    def fill(self, text: str) -> str:
        """A text with its placeholder replaced."""
        return text.replace("{folder}", str(self.folder))

    def hide(self, value: Any) -> Any:
        """The opposite, in every text of an answer."""
        if isinstance(value, str):
            for text, name in sorted(self.names.items(), key=lambda pair: -len(pair[0])):
                value = value.replace(text, name)
            for form, word in OWN:
                value = form.sub(word, value)
            return value
        if isinstance(value, list):
            return [self.hide(one) for one in value]
        if isinstance(value, dict):
            return {key: self.hide(one) for key, one in value.items()}
        return value


def run(peer: Peer, scenario: Scenario) -> Iterator[tuple[str, Answer]]:
    """Send a scenario; gives each compared case's name and answer."""
    _arrange(peer, scenario)
    for gate in peer.folder.glob("*"):
        gate.unlink()
    for step in scenario.steps:
        answer = send(peer, step)
        if step.compared:
            yield f"{scenario.name}/{step.name}", peer.hide(answer)


def _arrange(peer: Peer, scenario: Scenario) -> None:
    """The applications that a scenario wants, and no others."""
    wanted = dict(scenario.apps)
    for name, app in list(peer.running.items()):
        if scenario.fresh or wanted.get(name) != app:
            _order(peer, {"do": "delete", "name": name})
    for name, app in wanted.items():
        if name not in peer.running:
            said = _order(peer, {"do": "run", "name": name, "app": app})
            if said:
                raise RuntimeError(f"{scenario.name}: {name} does not run: {said}")


def _order(peer: Peer, order: dict[str, Any]) -> Answer:
    """Tell the script, and note what runs then."""
    said = peer.tell(order)
    if order["do"] == "run":
        peer.running[order["name"]] = order["app"]
    elif order["do"] == "delete":
        peer.running.pop(order["name"], None)
    return said


def send(peer: Peer, step: Step) -> Answer:
    """One case."""
    if step.order is not None:
        return _order(peer, step.order)
    if step.until:
        give_up = time.monotonic() + UNTIL_S
        while step.until not in (answer := _Running(peer, step).ended()).get("text", "") + str(answer.get("messages")):
            if time.monotonic() > give_up:
                break
            time.sleep(POLL_S)
        return answer
    held = [_held(peer, one) for one in step.held]
    calls = [_Running(peer, step) for _ in range(step.copies)]
    calls += [_Running(peer, one) for one in step.together]
    if step.opens_after is not None:
        give_up = time.monotonic() + HELD_S
        while sum(call.is_over() for call in calls) < step.opens_after and time.monotonic() < give_up:
            time.sleep(POLL_S)
        _open(peer)
    answers = [call.ended() for call in calls]
    if step.held or step.opens:
        _open(peer)
    answer = answers[0] if len(answers) == 1 else {"all": sorted(answers, key=_outcome)}
    return answer | ({"held": [call.ended() for call in held]} if held else {})


def _outcome(answer: Answer) -> str:
    return json.dumps({key: value for key, value in answer.items() if key != "trailers"}, sort_keys=True)


def _held(peer: Peer, step: Step) -> _Running:
    """A call that has reached its gate."""
    gate = Path(peer.fill(next(part.split()[1] for part in step.words[0].split(";") if "{folder}" in part)))
    begun = gate.with_name(f"{gate.name}.begun")
    for old in (gate, begun):
        old.unlink(missing_ok=True)
    call = _Running(peer, step)
    _until(begun.exists)
    return call


def _open(peer: Peer) -> None:
    """Open every gate that somebody has reached, and those that somebody may."""
    for begun in peer.folder.glob("*.begun"):
        begun.with_suffix("").touch()


def _until(condition: Callable[[], bool]) -> None:
    """A bounded poll."""
    give_up = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("the calls before the case never got to where they belong")
        time.sleep(POLL_S)


class _Running:
    """A call in a thread of its own."""

    def __init__(self, peer: Peer, step: Step) -> None:
        self._peer = peer
        self._step = step
        self._messages: list[Answer] = []
        self._requests: queue.Queue[Any] = queue.Queue()
        self._single = False
        self._call = self._begin()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _begin(self) -> Any:
        step, rpc = self._step, self._step.rpc
        path = rpc if rpc.startswith("/") else f"/diffray.{rpc}"
        name = rpc.rpartition("/")[2]
        coders = {"request_serializer": bytes, "response_deserializer": bytes}
        metadata = tuple((key, self._peer.fill(value) if isinstance(value, str) else value)
                         for key, value in step.metadata)  # fmt: skip
        more = {"metadata": metadata, "timeout": step.deadline_s or PATIENCE_S}
        requests = self._asks()
        if name in CLIENT_STREAMS + BIDI:
            kind = "stream_unary" if name in CLIENT_STREAMS else "stream_stream"
            if not step.lockstep:
                for request in requests:
                    self._requests.put(request)
                if step.closes:
                    self._requests.put(None)
            method = getattr(self._peer.channel, kind)(path, **coders)
            self._single = kind == "stream_unary"
            method = method.future if self._single else method
            return method(iter(self._requests.get, None), **more)
        if name in UNARY or path.startswith(("/ray.", "/grpc.")):
            self._single = True
            return self._peer.channel.unary_unary(path, **coders).future(requests[0], **more)
        return self._peer.channel.unary_stream(path, **coders)(requests[0], **more)

    def _asks(self) -> list[bytes]:
        """The messages' bytes."""
        step = self._step
        if step.raw is not None:
            return [step.raw]
        sizes = step.sizes or (0,) * len(step.words)
        return [
            self._peer.messages.Ask(word=self._peer.fill(word), num=number, data=b"x" * size).SerializeToString()
            for number, (word, size) in enumerate(zip(step.words, sizes, strict=True), 1)
        ]

    def _read(self) -> None:
        """Read to the end, and cancel where the case says so."""
        step, call = self._step, self._call
        try:
            if step.cancel_when:
                _until(Path(f"{self._peer.fill(step.cancel_when)}.begun").exists)
                call.cancel()
            if self._single:
                self._messages.append(self._shown(call.result()))
            elif step.lockstep:
                for request in self._asks():
                    self._requests.put(request)
                    self._take(next(call))
                if step.closes:
                    self._requests.put(None)
                for message in call:
                    self._take(message)
            else:
                for message in call:
                    self._take(message)
        except (grpc.RpcError, grpc.FutureCancelledError, StopIteration):
            pass
        finally:
            self._requests.put(None)
            self._over.set()

    def _take(self, message: bytes) -> None:
        self._messages.append(self._shown(message))
        if self._step.cancel_after == len(self._messages):
            self._call.cancel()

    def _shown(self, data: bytes) -> Any:
        """A message as JSON."""
        rpc = self._step.rpc
        if rpc in OF_RAY:
            return OF_RAY[rpc](data)
        if rpc.startswith("/"):
            return _readable(data)
        answer = self._peer.messages.Answer()
        try:
            answer.ParseFromString(data)
        except Exception:  # noqa: BLE001  # DecodeError's name differs between implementations
            return {"undecodable": _readable(data)}
        shown: Answer = {"text": answer.text} | ({"num": answer.num} if answer.num else {})
        if answer.data:
            shown["data"] = _readable(answer.data)
        return shown | ({"unknown": _readable(data)} if answer.text == "" and not answer.data and data else {})

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def ended(self) -> Answer:
        """Its answers and its end."""
        self._over.wait(PATIENCE_S + 5)
        call = self._call
        return {
            "code": call.code().name,
            "text": call.details() or "",
            "messages": self._messages,
            "initial": _pairs(call.initial_metadata()),
            "trailers": _pairs(call.trailing_metadata()),
        }


def _pairs(metadata: Any) -> dict[str, list[Any]]:
    """Each key's values in their order."""
    found: dict[str, list[Any]] = {}
    for key, value in metadata or ():
        found.setdefault(key, []).append(_readable(value) if isinstance(value, bytes) else value)
    return dict(sorted(found.items()))


def _readable(data: bytes) -> Any:
    """Bytes as text or as base64; a digest where they are long."""
    if len(data) > LONGEST:
        return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
    return text if text.isprintable() else {"base64": base64.b64encode(data).decode()}
