"""Hosts of an rpc worker that call one another: what composition is made of, without deployments."""

import os

from actorserve.actors.messages import Cardinality, Ending
from actorserve.handlers.rpc.host import RpcHost
from actorserve.handlers.rpc.methods import Method
from actorserve.handlers.rpc.outgoing import CallFailed, Outgoing


class Front(RpcHost):
    """Passes each call on to the model that its metadata names, and says what came back."""

    async def build(self, context):
        self.methods = {"go": Method(None, self.begin), "pid": Method(None, self.pid)}

    def begin(self, call):
        call.spawn(self.go(call))

    def pid(self, call):
        call.end(Ending(data=str(os.getpid()).encode()))

    async def go(self, call):
        metadata = dict(call.opened.metadata)
        outgoing = Outgoing(
            call.engine,
            metadata["target"],
            method=metadata["method"],
            cardinality=call.opened.cardinality,
            data=call.opened.data,
            metadata=call.opened.metadata,
            deadline_ns=call.opened.deadline_ns,
        )
        if call.opened.data is None:
            call.engine.spawn(self.pass_on(call, outgoing))
        try:
            while (data := await outgoing.receive()) is not None:
                await call.room()
                call.send(data)
        except CallFailed as error:
            call.end(Ending(14, f"{error.error}: {error.text}"))
        else:
            call.end(outgoing.ending)
        finally:
            outgoing.cancel()

    async def pass_on(self, call, outgoing):
        while (data := await call.receive()) is not None:
            await outgoing.send(data)
        outgoing.end()


class Back(RpcHost):
    """Answers."""

    def __init__(self):
        super().__init__()
        self.cancelled = 0

    async def build(self, context):
        self.methods = {
            "double": Method(Cardinality.UNARY_UNARY, lambda call: call.end(Ending(data=call.opened.data * 2))),
            "count": Method(Cardinality.UNARY_STREAM, self.spawner(self.count)),
            "join": Method(Cardinality.STREAM_UNARY, self.spawner(self.join)),
            "echo": Method(Cardinality.STREAM_STREAM, self.spawner(self.echo)),
            "left": Method(Cardinality.UNARY_UNARY, self.left),
            "hang": Method(Cardinality.UNARY_UNARY, self.hang),
            "cancelled": Method(Cardinality.UNARY_UNARY, self.say_cancelled),
            "die": Method(Cardinality.UNARY_UNARY, lambda _: os._exit(3)),
        }

    @staticmethod
    def spawner(run):
        def begin(call):
            call.spawn(run(call))

        return begin

    async def count(self, call):
        for number in range(int(call.opened.data)):
            await call.room()
            call.send(b"%d" % number)
        call.end(Ending(trailers=(("x-said", "all"),)))

    async def join(self, call):
        parts = []
        while (data := await call.receive()) is not None:
            parts.append(data)
        call.end(Ending(data=b"".join(parts)))

    async def echo(self, call):
        while (data := await call.receive()) is not None:
            await call.room()
            call.send(data)
        call.end(Ending(9, "enough"))

    def left(self, call):
        call.end(Ending(data=b"%d" % (call.time_remaining() or -1)))

    def hang(self, call):
        def gone():
            self.cancelled += 1
            call.end(Ending(1))

        call.on_cancel = gone

    def say_cancelled(self, call):
        call.end(Ending(data=b"%d" % self.cancelled))
