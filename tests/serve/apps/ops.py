"""Deployments that show what calls can do: behind Ray's UserDefinedService, with two more deployments below."""

import asyncio
import json
import os
import time
import weakref
from pathlib import Path

from actorserve import serve
from actorserve.serve.context import request
from actorserve.serve.exceptions import DeploymentUnavailableError, RequestCancelledError
from actorserve.serve.generated import serve_pb2

Reply = serve_pb2.UserDefinedResponse

KEYS = ("request_id", "traceparent", "session_id", "multiplexed_model_id")


def keys_of(context):
    """What a grpc_context, or a request's context, has of Ray's keys."""
    found = [getattr(context, key) for key in KEYS]
    return [(one() if callable(one) else one) or "" for one in found]


def mark(name, where):
    """A call has come to a deployment: NAME.WHERE.PID; an error where it comes to a replica for the second time."""
    Path(os.environ["MARKS"], f"{name}.{where}.{os.getpid()}").touch(exist_ok=False)


class Weights:
    """A model that was loaded."""

    def __init__(self, id):
        self.id = id


@serve.deployment
class Leaf:
    def __init__(self):
        self.sleeping = self.cancelled = self.streams = 0
        self.models = self.most_alive = 0
        self.alive = weakref.WeakSet()

    async def pid(self):
        return os.getpid()

    async def sleep(self, seconds):
        self.sleeping += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return os.getpid()

    def double(self, number):
        return 2 * number

    def remaining(self):
        return request().time_remaining()

    async def seen(self):
        return f"{self.sleeping} {self.cancelled}"

    async def die(self):
        os._exit(3)

    async def numbers(self, upto):
        self.streams += 1
        try:
            for number in range(upto):
                yield number
        finally:
            self.streams -= 1

    async def open_streams(self):
        return self.streams

    async def wait_for_ever(self):
        self.sleeping += 1
        await asyncio.Event().wait()

    def plain_numbers(self, upto):
        yield from range(upto)

    def id(self):
        return request().request_id, serve.get_multiplexed_model_id()

    def keys(self):
        return keys_of(request())

    async def gated(self, name):
        mark(name, "Leaf")
        while not Path(os.environ["MARKS"], "open").exists():  # noqa: ASYNC240  # quick
            await asyncio.sleep(0.005)
        return os.getpid()

    async def refuse(self, text):
        raise ValueError(text)

    @serve.multiplexed(max_num_models_per_replica=5)
    async def model(self, model_id):
        self.models += 1
        mark = Path(os.environ["MARKS"], model_id)
        mark.touch(exist_ok=False)  # noqa: ASYNC240  # nobody else loads it now
        await asyncio.sleep(0.01)
        mark.unlink()  # noqa: ASYNC240  # as above
        weights = Weights(model_id)
        self.alive.add(weights)
        self.most_alive = max(self.most_alive, len(self.alive))
        return weights

    async def use(self):
        """Which model it was, in which replica, and how many it has had at once and loaded."""
        weights = await self.model(serve.get_multiplexed_model_id())
        await asyncio.sleep(0.005)
        return f"{weights.id} {os.getpid()} {self.most_alive} {self.models}"


@serve.deployment
class Middle:
    def __init__(self, leaf):
        self.leaf = leaf

    async def sleep(self, seconds):
        return await self.leaf.sleep.remote(seconds)

    async def gated(self, name):
        mark(name, "Middle")
        return f"{os.getpid()} {await self.leaf.gated.remote(name)}"

    async def chained(self, seconds):
        return await self.leaf.sleep.remote(seconds) != os.getpid()


@serve.deployment(max_ongoing_requests=64)
class Front:
    """Each method of the schema does what the message's `foo` says."""

    def __init__(self, middle, leaf):
        self.middle = middle
        self.leaf = leaf
        self.told = 0

    def reconfigure(self, config):
        self.told = config["told"]

    async def __call__(self, message, grpc_context):
        method = getattr(self, f"do_{message.foo}")
        if message.foo.endswith("_in_thread"):
            answer = await asyncio.to_thread(method, message, grpc_context)
        else:
            found = method(message, grpc_context)
            answer = await found if asyncio.iscoroutine(found) else found
        return answer if isinstance(answer, Reply) else Reply(greeting=str(answer), num_x2=2 * message.num)

    def Method1(self, message):  # a plain def: it runs in a thread, and may block
        if message.foo == "wrong":
            return 7
        return Reply(greeting=f"{self.leaf.sleep.remote(0.0).result() != os.getpid()}", num_x2=message.num)

    async def Streaming(self, message):
        for number in range(message.num):
            yield Reply(greeting=str(number))
            if message.foo == "break":
                raise ValueError("broken")

    async def ClientStreaming(self, stream):
        return Reply(num_x2=sum([message.num async for message in stream]))

    async def BidiStreaming(self, stream):
        async for message in stream:
            yield Reply(num_x2=2 * message.num)

    def do_echo(self, message, context):
        return message.name

    def do_context(self, message, context):
        context.set_trailing_metadata([("seen", str(context.application())), ("request_id", "ignored")])
        return f"{context.request_id()} {dict(context.invocation_metadata()).get('extra')} {bool(context.peer())}"

    async def do_keys(self, message, context):
        here = keys_of(context)
        assert here == keys_of(request()), (here, keys_of(request()))
        leaf = self.leaf.options(session_id=message.name) if message.name else self.leaf
        return json.dumps([here, context.tracestate(), await leaf.keys.remote()])

    def do_code(self, message, context):
        context.set_code(5)
        context.set_details("not here")
        context.set_trailing_metadata([("why", "because")])

    def do_code_and_raise(self, message, context):
        context.set_code(8)
        context.set_trailing_metadata([("why", "because")])
        raise RuntimeError("too much")

    def do_raise(self, message, context):
        context.set_trailing_metadata([("why", "because")])
        raise KeyError(message.name)

    async def do_downstream(self, message, context):
        await self.leaf.refuse.remote(message.name)

    async def do_pass_on(self, message, context):
        return await self.leaf.double.remote(self.leaf.double.remote(message.num))

    async def do_remaining(self, message, context):
        return f"{await self.leaf.remaining.remote():.3f} {context.time_remaining():.3f}"

    async def do_sleep(self, message, context):
        return await self.middle.sleep.remote(message.num)

    async def do_gated(self, message, context):
        return await self.middle.gated.remote(message.name)

    async def do_seen(self, message, context):
        return await self.leaf.seen.remote()

    async def do_cancel(self, message, context):
        response = self.leaf.sleep.remote(60)
        response.cancel()
        try:
            await response
        except RequestCancelledError as error:
            return type(error).__name__

    async def do_streams(self, message, context):
        numbers = [n async for n in self.leaf.options(stream=True).numbers.remote(message.num)]
        plain = [n async for n in self.leaf.plain_numbers.options(stream=True).remote(message.num)]
        return f"{sum(numbers)} {sum(plain)}"

    async def do_abandon(self, message, context):
        numbers = self.leaf.options(stream=True).numbers.remote(1_000_000)
        async for number in numbers:
            if number == 3:
                numbers.cancel()
                break
        return number

    async def do_forget(self, message, context):
        async for number in self.leaf.options(stream=True).numbers.remote(1_000_000):
            if number == 3:
                break
        return number

    def do_forget_in_thread(self, message, context):
        return next(iter(self.leaf.options(stream=True).numbers.remote(1_000_000)))

    async def do_hold(self, message, context):
        async for _ in self.leaf.options(stream=True).numbers.remote(1_000_000):
            await asyncio.sleep(60)

    async def do_streams_open(self, message, context):
        return await self.leaf.open_streams.remote()

    async def do_own_cancel(self, message, context):
        raise asyncio.CancelledError("mine")

    async def do_crowd(self, message, context):
        await asyncio.gather(*(self.leaf.wait_for_ever.remote() for _ in range(4)))

    async def do_ids(self, message, context):
        mine = serve.get_multiplexed_model_id()
        inherited = await self.leaf.id.remote()
        given = await self.leaf.options(multiplexed_model_id="m7").id.remote()
        return f"{mine}|{inherited[1]}|{given[1]}|{inherited[0] == given[0] == context.request_id()}"

    async def do_use(self, message, context):
        return await self.leaf.options(multiplexed_model_id=message.name).use.remote()

    async def do_die(self, message, context):
        try:
            await self.leaf.die.remote()
        except DeploymentUnavailableError as error:
            return f"{type(error).__name__} {await self.leaf.pid.remote() > 0}"

    async def do_let_die(self, message, context):
        await self.leaf.die.remote()

    async def do_missing(self, message, context):
        await self.leaf.nothing.remote()

    def do_told(self, message, context):
        return self.told

    def do_block(self, message, context):
        time.sleep(message.num)
        return "blocked"


leaf = Leaf.bind()
app = Front.bind(Middle.bind(leaf), leaf)
