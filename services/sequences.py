"""StreamPredictions2: one call, many messages, one reply to each; stateful sequences beside one another.

Rules
1. Every message has exactly one reply. The replies of a sequence come in the order of its messages, those of two
   sequences in any. A handler's last word may follow the client's half-close.
2. A reply carries its sequence_id. A message without one belongs to the call's own sequence of its model, whose id is
   made here, before anything can go wrong with it.
3. An error is a reply with a status, and the call goes on. Only what breaks the call itself is the call's status.
4. A sequence belongs to the call that opened it and ends with it: ids of two calls never meet. One that has ended
   earlier (expired, crashed, failed) stays ended: what still comes for it is answered with NOT_FOUND, and never
   opens a sequence that lacks its beginning. One whose first message was refused has ended so, too.
5. A model without sequences answers each message as a question of its own, in the order of the messages.

Over 250 lines: a call and its two kinds of lanes know each other.
What must not live here: the worker's side (actors/sequences.py), statuses (status.py), fields (codec.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol
from uuid import uuid4

import trio
from grpclib.exceptions import GRPCError, StreamTerminatedError

from actorserve.actors.directory import Directory
from actorserve.actors.duplex import Duplex
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Answer, Infer, Metadata, OpenSequence
from actorserve.actors.reply import Reply
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS
from actorserve.errors import ActorserveError, BadInput, NoSuchSequence, NotStateful, TooLarge
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.services.access import check_model, metadata_for
from actorserve.services.codec import inputs_of, model_of
from actorserve.services.compat import About

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream

LONGEST_ID = 256
MOST_REFUSED = 100
"""Endings that a call remembers when a model is not there: nobody says then how many of its sequences may be open."""
Inputs = Mapping[str, bytes]
InBand = Callable[[Exception, About], bytes]
"""An error as a google.rpc.Status in its bytes, by the listener's table."""


class _Key(NamedTuple):
    """A sequence of this call; `id` is empty for the questions to a model without sequences."""

    model: str
    version: str
    id: str


class _Lane(Protocol):
    """Messages in, replies out, in order."""

    async def send(self, id: str, inputs: Inputs) -> None: ...

    async def run(self) -> None: ...

    def end(self) -> None: ...


class Conversation:
    """One call. `run` once."""

    def __init__(self, stream: ServerStream, directory: Directory, in_band: InBand) -> None:
        self._stream = stream
        self._directory = directory
        self._in_band = in_band
        self._deadline = float("inf") if stream.expires is None else stream.expires
        self._metadata = metadata_for(stream)
        self._lanes: dict[_Key, _Lane] = {}
        self._own: dict[tuple[str, str], _Key] = {}  # the call's own sequence of a model
        self._ended: dict[_Key, tuple[ActorserveError, bool]] = {}  # why, and whether the client knows

    async def run(self) -> None:
        """Take messages until the client ends, then answer what is in hand. Cancelling ends every sequence."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                async for request in self._stream:
                    await self._take(request, nursery)
            except Exception as error:  # noqa: BLE001  # raised below as it is, in no group
                failure = error
                nursery.cancel_scope.cancel()
            for lane in self._lanes.values():
                lane.end()
        if failure is not None:
            raise failure

    async def _take(self, request: PredictionsRequest, nursery: trio.Nursery) -> None:
        """Pass one message on; waits while its sequence has as much as it may have. Lanes run in `nursery`."""
        key, inputs = self._key_of(request), inputs_of(request)
        try:
            model_of(request)
            check_model(self._stream, key.model)
            if len(key.id) > LONGEST_ID:
                raise BadInput("sequence_id", f"has {len(key.id)} characters; at most {LONGEST_ID} are taken")
            if not request.sequence_id:
                self._own[key.model, key.version] = key
            lane = self._lanes.get(key._replace(id="")) or self._lanes.get(key)  # open: it may have lost its name
            try:
                await (lane or self._lane(key, nursery)).send(key.id, inputs)
            except NotStateful:
                await self._questions(key._replace(id=""), nursery).send(key.id, inputs)
        except ActorserveError as error:
            await self.say(key, error)

    def _key_of(self, request: PredictionsRequest) -> _Key:
        """The sequence that a message means, with an id whatever may be wrong with the rest of it."""
        name, version, id = request.model_name, request.model_version, request.sequence_id
        if id:
            return _Key(name, version, id)
        own = self._own.get((name, version))
        return own or _Key(name, version, f"seq-{uuid4()}")

    def _lane(self, key: _Key, nursery: trio.Nursery) -> _Lane:
        """Open a sequence. NotStateful: its model has none. What else refuses it ends it (rule 4)."""
        limit = MOST_REFUSED
        try:
            mailbox = self._directory.find(key.model, key.version)
            limit = mailbox.seats.limit
            if (can := mailbox.capabilities) is not None and not can.sequences:
                raise NotStateful(f"model {key.model} has no sequences")
            if key in self._ended:
                raise self._farewell(key)
            inputs = {"sequence_id": key.id.encode()}
            message = OpenSequence(inputs, self._metadata, self._stream.ensure_request_id())
            lane = _Stateful(self, key, mailbox.ask(message, self._deadline), limit)
        except NotStateful:
            raise
        except ActorserveError as error:
            if key not in self._ended:
                self._remember(key, error, told=True, limit=limit)
            raise
        self._begin(key, lane, nursery)
        return lane

    def _questions(self, key: _Key, nursery: trio.Nursery) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            mailbox = self._directory.find(key.model, key.version)
            lane = _Questions(self, key, mailbox, self._deadline, self._metadata, self._stream.ensure_request_id())
            self._begin(key, lane, nursery)
        return lane

    def _begin(self, key: _Key, lane: _Lane, nursery: trio.Nursery) -> None:
        self._lanes[key] = lane
        nursery.start_soon(self._run, lane)

    def _remember(self, key: _Key, error: ActorserveError, *, told: bool, limit: int) -> None:
        """A sequence has ended. Of the last ones only; an earlier id may begin anew."""
        self._ended[key] = error, told
        while len(self._ended) > max(limit, 1):
            forgotten = next(iter(self._ended))
            del self._ended[forgotten]
            if self._own.get(forgotten[:2]) == forgotten:
                del self._own[forgotten[:2]]

    @staticmethod
    async def _run(lane: _Lane) -> None:
        try:
            await lane.run()
        except StreamTerminatedError:
            return  # the client has gone: the transport cancels the call

    # --- what lanes use -------------------------------------------------------------------------

    async def say(self, key: _Key, reply: bytes | ActorserveError | GRPCError) -> None:
        """Send one reply; an answer that is too large to be sent becomes the error that says so."""
        response = PredictionResponse(sequence_id=key.id)
        if isinstance(reply, bytes):
            response.prediction = reply
        else:
            response.status.ParseFromString(self._in_band(reply, About(key.model, key.version)))
        try:
            await self._stream.send_message(response)
        except GRPCError as error:
            if not isinstance(reply, bytes):
                raise
            await self.say(key, error)

    async def drained(self) -> None:
        """Wait until flow control has taken what was said."""
        await self._stream.drained()

    def note_end(self, key: _Key, error: ActorserveError, *, told: bool, limit: int) -> None:
        """A sequence has ended by itself. As many are remembered as the model may have open."""
        del self._lanes[key]
        if not isinstance(error, NotStateful):
            self._remember(key, error, told=told, limit=limit)

    def _farewell(self, key: _Key) -> ActorserveError:
        error, told = self._ended[key]
        self._ended[key] = error, True
        return NoSuchSequence(f"the sequence has ended: {error}") if told else error


class _Stateful:
    """One sequence."""

    def __init__(self, call: Conversation, key: _Key, duplex: Duplex, limit: int) -> None:
        self._call = call
        self._key = key
        self._duplex = duplex
        self._limit = limit
        self._late = 0  # messages that came too late, while earlier ones were still owed their replies
        self._is_over = False

    async def send(self, id: str, inputs: Inputs) -> None:  # a lane has this shape
        """Raises what the sequence has ended with; an end before all is answered is told in its turn, by `run`."""
        try:
            await self._duplex.send(inputs)
        except (NotStateful, TooLarge):
            raise
        except ActorserveError:
            if self._is_over:
                raise
            self._late += 1

    def end(self) -> None:
        """No more messages come."""
        self._duplex.end()

    async def run(self) -> None:
        """Say each reply. An end before its time is said to each message that it leaves unanswered."""
        duplex = self._duplex
        try:
            while replies := await duplex.receive():
                for reply in replies:
                    await self._call.say(self._key, reply)
                await self._call.drained()
                duplex.taken(len(replies), sum(len(reply) for reply in replies if isinstance(reply, bytes)))
        except ActorserveError as error:
            self._is_over = True
            unanswered = duplex.unanswered + self._late
            self._call.note_end(self._key, error, told=unanswered > 0, limit=self._limit)
            for _ in range(unanswered):
                await self._call.say(self._key, error)
        finally:
            duplex.abandon()


class _Questions:
    """The messages to a model without sequences: some are asked ahead, all are answered in order."""

    def __init__(  # noqa: PLR0917  # made by the conversation alone
        self, call: Conversation, key: _Key, mailbox: Mailbox, deadline: float, metadata: Metadata, request_id: str
    ) -> None:
        self._call = call
        self._key = key
        self._mailbox = mailbox
        self._deadline = deadline
        self._metadata = metadata
        self._request_id = request_id
        self._asked: deque[tuple[str, int, Reply[Answer]]] = deque()
        self._bytes = 0
        self._ended = False
        self._changed = trio.Event()

    async def send(self, id: str, inputs: Inputs) -> None:
        """Ask, once fewer than 16 questions or 256 KiB wait for their answers."""
        while self._asked and (len(self._asked) >= CREDIT_CHUNKS or self._bytes >= CREDIT_BYTES):
            await self._changed.wait()
        try:
            reply = self._mailbox.ask(Infer(inputs, self._metadata, self._request_id), self._deadline)
        except ActorserveError as error:
            reply = Reply()
            reply.fail(error)
        size = sum(map(len, inputs.values()))
        self._bytes += size
        self._asked.append((id, size, reply))
        self._wake()

    def end(self) -> None:
        """No more messages come."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Answer in order."""
        try:
            while self._asked or not self._ended:
                if self._asked:
                    await self._answer_first()
                else:
                    await self._changed.wait()
        finally:
            for _, _, reply in self._asked:
                reply.abandon()

    async def _answer_first(self) -> None:
        id, size, reply = self._asked[0]
        try:
            answer: bytes | ActorserveError = (await reply.wait()).data
        except ActorserveError as error:
            answer = error
        await self._call.say(self._key._replace(id=id), answer)
        await self._call.drained()
        self._asked.popleft()
        self._bytes -= size
        self._wake()
