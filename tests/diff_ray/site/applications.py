# ruff: noqa: N802 - methods have the names of their rpcs
"""The applications that are called, written once: Ray Serve's names, of which only the imports' lines change.

What must not live here: what a call does (performing.py), starting them (script.py).
"""

import asyncio
import json

from cases_pb2 import Answer, Other
from performing import gate, perform, perform_plainly
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream
from ray.serve.handle import DeploymentHandle

SHAPES = {
    "none": None,
    "text": "text",
    "bytes": b"\x0a\x03raw",
    "dict": {"text": "dict"},
    "number": 7,
    "list": [Answer(text="listed")],
    "other": Other(other="of another type"),
    "class": Answer,
}
SMALL = {"num_cpus": 0}


class Worded:
    """Methods that do what a call's word says."""

    def __init__(self):
        self.seen = []

    async def __call__(self, ask):
        return Answer(text=f"called {ask.word}", num=ask.num)

    async def Unary(self, ask, grpc_context: RayServegRPCContext):
        said = [one async for one in perform(ask.word, grpc_context, self.seen)]
        return Answer(text="|".join(said), num=ask.num, data=ask.data)

    async def Bare(self, ask):
        return Answer(text=f"bare {ask.word}", num=ask.num)

    def Plain(self, ask):
        return Answer(text="|".join(perform_plainly(ask.word, self.seen)))

    def Shape(self, ask):
        return SHAPES[ask.word]

    async def Generates(self, ask):
        yield Answer(text=ask.word)

    async def NoParameter(self):
        return Answer(text="without a parameter")

    async def TwoParameters(self, ask, more):
        return Answer(text=f"{ask.word} {more}")

    async def Seen(self, ask):
        since = self.seen.index(ask.word) + 1 if ask.word in self.seen else 0
        return Answer(text=",".join(self.seen[since:]))

    async def Stream(self, ask, grpc_context: RayServegRPCContext):
        async for one in perform(ask.word, grpc_context, self.seen):
            yield Answer(text=one, data=ask.data)

    def PlainStream(self, ask):
        for one in perform_plainly(ask.word, self.seen):
            yield Answer(text=one)

    async def Returns(self, ask):
        return Answer(text=ask.word)

    async def ShapeStream(self, ask):
        yield Answer(text="first")
        yield SHAPES[ask.word]
        yield Answer(text="last")

    async def Collect(self, asks: gRPCInputStream, grpc_context: RayServegRPCContext):
        said = []
        try:
            async for ask in asks:
                said += [one async for one in perform(ask.word, grpc_context, self.seen)]
        except BaseException as error:
            self.seen.append(f"collect {type(error).__name__}")
            raise
        self.seen.append(f"collected {len(said)} {asks.is_cancelled()}")
        return Answer(text="|".join(said))

    def PlainCollect(self, asks):
        return Answer(text=type(asks).__name__)

    async def Chat(self, asks: gRPCInputStream, grpc_context: RayServegRPCContext):
        try:
            async for ask in asks:
                async for one in perform(ask.word, grpc_context, self.seen):
                    yield Answer(text=one)
        except BaseException as error:
            self.seen.append(f"chat {type(error).__name__}")
            raise
        self.seen.append(f"chatted {asks.is_cancelled()}")


@serve.deployment(max_ongoing_requests=50, ray_actor_options=SMALL)
class Words(Worded):
    """The ingress of most cases."""


@serve.deployment(ray_actor_options=SMALL)
def function(ask):
    """An ingress that is a function."""
    return Answer(text=f"function {ask.word}")


@serve.deployment(ray_actor_options=SMALL)
class OtherIngress:
    """A second application's."""

    async def Unary(self, ask):
        return Answer(text=f"other {ask.word}")

    async def OnlySecond(self, ask):
        return Answer(text=f"only second {ask.word}")


@serve.deployment(max_ongoing_requests=1, max_queued_requests=1, ray_actor_options=SMALL)
class Narrow(Worded):
    """One at work, one in the queue."""


@serve.deployment(max_ongoing_requests=20, ray_actor_options=SMALL)
class Batched:
    """Batches of four, which wait long for the fourth."""

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=3.0)
    async def together(self, words):
        """`all KIND`: raise; `slot`: an exception in its place; `short`: one answer too few."""
        if any(word.startswith("all") for word in words):
            raise ValueError("all of them")
        answers = [ValueError(f"only {word}") if word == "slot" else f"{word} of {len(words)}" for word in words]
        return answers[1:] if "short" in words else answers

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=3.0)
    async def flow(self, words):
        """A streaming batch: two rounds; `stop` ends after the first, `break` raises in the second."""
        yield [f"{word} 1 of {len(words)}" for word in words]
        if "break" in words:
            raise ValueError("broken flow")
        yield [StopIteration if word == "stop" else f"{word} 2" for word in words]

    async def Unary(self, ask):
        answer = await self.together(ask.word)
        return Answer(text=answer if isinstance(answer, str) else f"{type(answer).__name__}: {answer}")

    async def Stream(self, ask):
        async for one in self.flow(ask.word):
            yield Answer(text=one)


@serve.deployment(max_ongoing_requests=10, ray_actor_options=SMALL)
class Models:
    """Two models at once."""

    def __init__(self):
        self.loads = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def model(self, model_id: str):
        """`bad...` cannot be loaded."""
        self.loads.append(model_id)
        if model_id.startswith("bad"):
            raise ValueError(f"cannot load {model_id}")
        return f"<{model_id}>"

    async def Unary(self, ask, grpc_context: RayServegRPCContext):
        own = serve.get_multiplexed_model_id()
        model = await self.model(own)
        return Answer(text=f"{model} {own} {grpc_context.multiplexed_model_id()} {self.loads}")

    async def Bare(self, ask):
        return Answer(text=await self.model(ask.word))

    async def Plain(self, ask):
        return Answer(text=str(self.loads))


@serve.deployment(max_ongoing_requests=20, ray_actor_options=SMALL)
class Inner:
    """What `Front` calls."""

    def __init__(self, name):
        self.name = name
        self.seen = []

    async def __call__(self, text):
        return f"{self.name}({text})"

    async def say(self, text, more=""):
        return f"{self.name}.say({text}{more})"

    def plainly(self, text):
        return f"{self.name}.plainly({text})"

    async def fail(self, text):
        raise ValueError(text)

    async def count(self, number):
        for one in range(number):
            yield f"{self.name} {one}"

    def count_plainly(self, number):
        yield from range(number)

    async def count_then_fail(self, number):
        for one in range(number):
            yield f"{self.name} {one}"
        raise KeyError("in the stream")

    async def hold(self, name):
        try:
            await gate(name)
        except BaseException as error:
            self.seen.append(type(error).__name__)
            raise
        return "held"

    async def look(self):
        return ",".join(self.seen)

    async def model(self):
        return serve.get_multiplexed_model_id()

    async def where(self):
        replica = serve.get_replica_context()
        return f"{replica.app_name} {replica.deployment}"

    async def takes(self, value):
        return f"{type(value).__name__} {value}"


@serve.deployment(max_ongoing_requests=20, ray_actor_options=SMALL)
class Front:
    """An ingress that calls others: `VERB TEXT`."""

    def __init__(self, inner: DeploymentHandle, narrow: DeploymentHandle, double: DeploymentHandle):
        self.inner = inner
        self.narrow = narrow
        self.double = double

    async def Unary(self, ask, grpc_context: RayServegRPCContext):
        verb, _, rest = ask.word.partition(" ")
        return Answer(text=str(await getattr(self, f"do_{verb}")(rest)))

    async def Stream(self, ask):
        verb, _, rest = ask.word.partition(" ")
        method = {"count": self.inner.count, "fail": self.inner.count_then_fail, "plainly": self.inner.count_plainly}[
            verb
        ]
        async for one in method.options(stream=True).remote(int(rest)):
            yield Answer(text=str(one))

    def Plain(self, ask):
        return Answer(text=self.inner.say.remote(ask.word).result(timeout_s=20))

    async def do_call(self, text):
        return await self.inner.remote(text)

    async def do_method(self, text):
        return await self.inner.say.remote(text)

    async def do_keyword(self, text):
        return await self.inner.say.remote(text, more="!")

    async def do_plainly(self, text):
        return await self.inner.plainly.remote(text)

    async def do_function(self, text):
        return await self.double.remote(int(text))

    async def do_options(self, text):
        return await self.inner.options(method_name="say").remote(text)

    async def do_chain(self, text):
        return await self.inner.say.remote(self.inner.say.remote(text))

    async def do_chainkeyword(self, text):
        return await self.inner.say.remote("a", more=self.inner.say.remote(text))

    async def do_nested(self, text):
        return await self.inner.takes.remote([self.inner.say.remote(text)])

    async def do_gather(self, text):
        return ",".join(await asyncio.gather(*(self.inner.say.remote(number) for number in range(int(text)))))

    async def do_twice(self, text):
        response = self.inner.say.remote(text)
        return f"{await response} {await response}"

    async def do_types(self, _):
        response, stream = self.inner.say.remote("x"), self.inner.count.options(stream=True).remote(1)
        names = f"{type(self.inner).__name__} {type(response).__name__} {type(stream).__name__}"
        await response
        return f"{names} {[one async for one in stream]}"

    async def do_streamed(self, text):
        return [one async for one in self.inner.count.options(stream=True).remote(int(text))]

    async def do_unstreamed(self, text):
        return await self.inner.count.remote(int(text))

    async def do_overstreamed(self, text):
        return [one async for one in self.inner.say.options(stream=True).remote(text)]

    async def do_fail(self, text):
        return await self.inner.fail.remote(text)

    async def do_chainfail(self, text):
        return await self.inner.say.remote(self.inner.fail.remote(text))

    async def do_caught(self, text):
        try:
            return await self.inner.fail.remote(text)
        except ValueError as error:
            return f"caught a ValueError that ends with its text: {str(error).endswith(text)}"

    async def do_absent(self, text):
        return await self.inner.absent.remote(text)

    async def do_unpicklable(self, _):
        return await self.inner.say.remote(asyncio.Event().wait())

    async def do_misfit(self, _):
        return await self.inner.say.remote()

    async def do_model(self, text):
        return await self.inner.model.options(multiplexed_model_id=text).remote()

    async def do_inherited(self, _):
        return json.dumps([serve.get_multiplexed_model_id(), await self.inner.model.remote()])

    async def do_where(self, _):
        return await self.inner.where.remote()

    async def do_hold(self, text):
        return await self.inner.hold.remote(text)

    async def do_look(self, _):
        return await self.inner.look.remote()

    async def do_cancel(self, text):
        response = self.inner.hold.remote(text)
        response.cancel()
        try:
            return await response
        except BaseException as error:  # noqa: BLE001  # its type is what is asked
            return f"{type(error).__name__} {isinstance(error, Exception)}"

    async def do_impatient(self, text):
        try:
            return await asyncio.wait_for(self.inner.hold.remote(text), 0.5)
        except TimeoutError:
            return "gave up"

    async def do_full(self, text):
        """More calls than a narrow deployment takes."""
        first = self.narrow.hold.remote(text)
        await gate(f"{text}.begun")
        given = [self.narrow.say.remote("x") for _ in range(4)]
        refused = [one for one in await asyncio.gather(*given, return_exceptions=True) if isinstance(one, Exception)]
        await first
        return f"{sorted({type(one).__name__ for one in refused})} {min(len(refused), 2)}"


@serve.deployment(ray_actor_options=SMALL)
def double(number):
    return 2 * number


@serve.deployment(ray_actor_options=SMALL)
class Configured:
    """Its text is configured; "bad" is refused."""

    def __init__(self):
        self.texts = []

    def reconfigure(self, config):
        if config["text"] == "bad":
            raise ValueError("a bad text")
        self.texts.append(config["text"])

    async def Unary(self, ask):
        return Answer(text=self.texts[-1])


@serve.deployment(max_constructor_retry_count=1, ray_actor_options=SMALL)
class Broken:
    """It cannot be made."""

    def __init__(self):
        raise ValueError("broken constructor")

    async def Unary(self, ask):
        return Answer(text="never")


@serve.deployment(health_check_period_s=1, health_check_timeout_s=5, ray_actor_options=SMALL)
class Mortal(Worded):
    """It is killed, and comes again."""


def application(name, config):
    """An application by its name."""
    match name:
        case "front":
            narrow = Inner.options(name="Narrow", max_ongoing_requests=1, max_queued_requests=1).bind("narrow")
            return Front.bind(Inner.bind("inner"), narrow, double.bind())
        case "configured":
            return Configured.options(user_config=config).bind()
        case _:
            made = {
                "words": Words,
                "function": function,
                "other": OtherIngress,
                "narrow": Narrow,
                "batched": Batched,
                "models": Models,
                "broken": Broken,
                "mortal": Mortal,
            }
            return made[name].bind()
