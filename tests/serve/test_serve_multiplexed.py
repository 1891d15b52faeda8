"""serve.multiplexed in a loop of its own: one load a model, the least recently used gives way, use keeps a model."""

import asyncio
import gc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import play, settle

from actorserve import serve
from actorserve.errors import TooLarge
from actorserve.serve.context import RequestContext, Scope, entered
from actorserve.serve.exceptions import OptionError
from actorserve.serve.multiplexing import Models


class Model:
    """What is loaded."""

    def __init__(self, id, nbytes=1):
        self.id = id
        self.nbytes = nbytes


class Loader:
    """Loads when it is let; counts."""

    def __init__(self, **limits):
        self.loads = []
        self.loading = 0
        self.most_loading = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.told = ()
        self.sizes = {}
        self.models = Models(self.load, tell=self.hear, **limits)

    def hear(self, held, loading):
        self.told = (held, loading)

    async def load(self, id):
        self.loads.append(id)
        self.most_loading[id] = self.most_loading.get(id, 0) + 1
        assert self.most_loading[id] == 1, "two loads of one model at once"
        try:
            await self.gate.wait()
            await asyncio.sleep(1)
            if id.startswith("bad"):
                raise ValueError(id)
            return Model(id, self.sizes.get(id, 1))
        finally:
            self.most_loading[id] -= 1

    async def use(self, id, until=None):
        """A request that uses a model until it is let end."""
        scope = Scope()
        try:
            model = await self.models.get(id, scope)
            if until is not None:
                await until.wait()
            return model.id
        finally:
            scope.end()


def test_one_load_however_many_ask():
    """Forty requests over eight models with room for two: no more than eight loads, never two of one at once."""

    async def main():
        loader = Loader(most=2)
        answers = await asyncio.gather(*(loader.use(f"m{n % 8}") for n in range(40)))
        assert answers == [f"m{n % 8}" for n in range(40)]
        assert sorted(loader.loads) == [f"m{n}" for n in range(8)]
        assert len(loader.models.held) == 2

    play(main)


def test_the_least_recently_used_gives_way():
    """A hit makes a model the most recent; the oldest of those that nobody uses is evicted. The server is told."""

    async def main():
        loader = Loader(most=2)
        for id in ("a", "b", "a", "c"):
            await loader.use(id)
        assert list(loader.models.held) == ["a", "c"]
        assert loader.told == (["a", "c"], [])
        await loader.use("a")
        assert loader.loads == ["a", "b", "c"]

    play(main)


def test_a_model_in_use_stays():
    """Eviction waits for the running request; loads in line begin in order as room comes."""

    async def main():
        loader = Loader(most=1)
        until = asyncio.Event()
        using = asyncio.ensure_future(loader.use("a", until))
        await asyncio.sleep(2)
        waiting = [asyncio.ensure_future(loader.use(id)) for id in ("b", "c")]
        await settle()
        assert loader.loads == ["a"]
        assert list(loader.models.held) == ["a"]
        until.set()
        assert await asyncio.gather(using, *waiting) == ["a", "b", "c"]
        assert loader.loads == ["a", "b", "c"]

    play(main)


def test_two_that_wait_do_not_wait_for_each_other():
    """A request that has one model and waits for another does not keep the first from being evicted."""

    async def main():
        loader = Loader(most=1)

        async def both(first, second):
            scope = Scope()
            try:
                one = await loader.models.get(first, scope)
                other = await loader.models.get(second, scope)
                return one.id + other.id
            finally:
                scope.end()

        assert await asyncio.gather(both("a", "b"), both("b", "a")) == ["ab", "ba"]

    play(main)


def test_a_load_that_fails():
    """Everybody who waited for it gets the exception; nothing is kept, and the next request tries again."""

    async def main():
        loader = Loader(most=1)
        results = await asyncio.gather(*(loader.use("bad") for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in results] == [ValueError] * 3
        assert loader.loads == ["bad"]
        assert await loader.use("good") == "good"
        with pytest.raises(ValueError, match="bad"):
            await loader.use("bad")
        assert loader.loads == ["bad", "good", "bad"]

    play(main)


def test_a_load_that_nobody_waits_for():
    """One of two that wait may go; when both have gone, the load is cancelled and its room is free."""

    async def main():
        loader = Loader(most=1)
        loader.gate.clear()
        first, second = (asyncio.ensure_future(loader.use("a")) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        assert loader.most_loading["a"] == 1
        second.cancel()
        await settle()
        assert loader.most_loading["a"] == 0
        loader.gate.set()
        assert await loader.use("b") == "b"

    play(main)


def test_memory():
    """Room in bytes: what is known of a model counts before its load; one that is too large by itself fails."""

    async def main():
        loader = Loader(most=-1, most_bytes=10)
        loader.sizes = {"a": 4, "b": 5, "c": 6, "big": 11}
        for id in ("a", "b", "c"):
            await loader.use(id)
        assert list(loader.models.held) == ["c"]
        await loader.use("a")
        assert list(loader.models.held) == ["c", "a"]
        with pytest.raises(TooLarge, match="model 'big' of 11 bytes is larger than the limit of 10 bytes"):
            await loader.use("big")
        await asyncio.gather(*map(loader.use, ("b", "c", "a", "b")))
        assert sum(one.bytes for one in loader.models.held.values()) <= 10

    play(main)


def test_an_evicted_model_is_let_go_of():
    """Nothing keeps an evicted model alive, and nothing of it is called."""

    async def main():
        loader = Loader(most=1)
        scope = Scope()
        seen = weakref.ref(await loader.models.get("a", scope))
        scope.end()
        await loader.use("b")
        gc.collect()
        assert seen() is None

    play(main)


@given(st.data(), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_bounds_hold(data, most):
    """Whatever is asked, cancelled and ended in whatever order: the bound holds, every load is one, everybody ends."""
    script = data.draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9), st.booleans()), max_size=40))

    async def main():
        loader = Loader(most=most)
        calls = []

        async def request(id, seconds):
            scope = Scope()
            try:
                await loader.models.get(f"m{id}", scope)
                assert len(loader.models.held) <= most
                await asyncio.sleep(seconds / 4)
            finally:
                scope.end()

        for id, seconds, cancels in script:
            calls.append(asyncio.ensure_future(request(id, seconds)))
            if cancels:
                await asyncio.sleep(0.3)
                calls[len(calls) // 2].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() or call.exception() is None for call in calls)
        assert len(loader.models.held) <= most
        assert not loader.models._line
        assert not loader.models._reserved

    play(main)


class Host:
    """A deployment's class."""

    def __init__(self):
        self.loads = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str):
        self.loads.append(model_id)
        return Model(model_id)


def test_the_decorator():
    """The id is given, or is the request's; instances do not share models; a task outside of a request may ask, too."""

    async def main():
        one, other = Host(), Host()
        request = RequestContext(multiplexed_model_id="a")
        with entered(request):
            assert (await one.get_model()).id == "a"
            assert (await one.get_model(serve.get_multiplexed_model_id())).id == "a"
        request.scope.end()
        assert (await other.get_model("a")).id == "a"
        assert (await one.get_model("b")).id == "b"
        assert (one.loads, other.loads) == (["a", "b"], ["a"])
        with pytest.raises(ValueError, match="no model is asked for"):
            await one.get_model()

    play(main)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: serve.multiplexed(max_num_models_per_replica=0), "max_num_models_per_replica: 0 is wrong"),
        (lambda: serve.multiplexed(Host.__init__), "multiplexed: "),
        (lambda: serve.multiplexed(max_memory_bytes_per_replica=-1), "max_memory_bytes_per_replica: -1 is wrong"),
    ],
)
def test_wrong_settings(make, said):
    """A wrong setting is named at once."""
    with pytest.raises(OptionError) as caught:
        make()
    assert str(caught.value).startswith(said)
