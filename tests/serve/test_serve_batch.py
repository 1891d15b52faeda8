"""serve.batch in a loop of its own, whose clock jumps: who is in a batch, when it begins, how each call ends."""

import asyncio
import time

import pytest
from loops import play, settle

from actorserve import serve
from actorserve.errors import Expired, TooLarge
from actorserve.serve.context import RequestContext, entered
from actorserve.serve.exceptions import BatchSizeError, OptionError


class Recorder:
    """A deployment's instance whose batches are written down; a gate holds them while it is shut."""

    def __init__(self):
        self.batches = []
        self.gate = asyncio.Event()
        self.gate.set()

    @serve.batch(max_batch_size=3, batch_wait_timeout_s=5)
    async def double(self, items):
        self.batches.append(list(items))
        await self.gate.wait()
        return [2 * item if isinstance(item, int) else ValueError(item) for item in items]

    @serve.batch(max_batch_size=10, batch_wait_timeout_s=1, batch_size_fn=sum)
    async def weighed(self, items):
        self.batches.append(list(items))
        return items

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=1, max_concurrent_batches=2)
    async def twice_at_once(self, items):
        self.batches.append(list(items))
        await self.gate.wait()
        return items

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=1)
    async def wrong(self, items):
        return items[1:]

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=1)
    async def broken(self, items):
        raise KeyError("all")

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=1)
    async def added(self, left, right=10):
        return [a + b for a, b in zip(left, right, strict=True)]

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=1)
    async def which(self, items):
        return [(item, serve.get_multiplexed_model_id(), len(items)) for item in items]

    @serve.batch(max_batch_size=3, batch_wait_timeout_s=1)
    async def count_down(self, items):
        try:
            for step in range(max(items)):
                self.batches.append(step)
                yield [step if step < item else StopIteration for item in items]
        finally:
            self.batches.append("closed")


def for_request(call, *args, **fields):
    """Run a call as a request of its own."""

    async def run():
        with entered(RequestContext(**fields)):
            return await call(*args)

    return asyncio.ensure_future(run())


def test_a_full_batch_goes_at_once():
    """Full: no waiting; the rest goes when its oldest call has waited as long as was said, and order is kept."""

    async def main():
        recorder = Recorder()
        loop = asyncio.get_running_loop()
        began = loop.time()
        calls = [asyncio.ensure_future(recorder.double(one)) for one in range(4)]
        assert await asyncio.gather(*calls[:3]) == [0, 2, 4]
        assert loop.time() == began
        assert await calls[3] == 6
        assert loop.time() == began + 5
        assert recorder.batches == [[0, 1, 2], [3]]

    play(main)


def test_one_batch_at_a_time():
    """With max_concurrent_batches = 1 the next batch waits for the one that runs, and is fuller for it."""

    async def main():
        recorder = Recorder()
        recorder.gate.clear()
        calls = [asyncio.ensure_future(recorder.double(one)) for one in range(3)]
        await settle()
        later = [asyncio.ensure_future(recorder.double(one)) for one in (5, 6, 7)]
        await settle()
        assert recorder.batches == [[0, 1, 2]]
        recorder.gate.set()
        assert await asyncio.gather(*calls, *later) == [0, 2, 4, 10, 12, 14]
        assert recorder.batches == [[0, 1, 2], [5, 6, 7]]

    play(main)


def test_batches_at_once():
    """max_concurrent_batches = 2 lets two run, and no third."""

    async def main():
        recorder = Recorder()
        recorder.gate.clear()
        calls = [asyncio.ensure_future(recorder.twice_at_once(one)) for one in range(6)]
        await settle()
        assert recorder.batches == [[0, 1], [2, 3]]
        recorder.gate.set()
        assert await asyncio.gather(*calls) == list(range(6))

    play(main)


def test_errors_per_item():
    """An exception in a slot is raised for its own call; the others have their answers."""

    async def main():
        recorder = Recorder()
        results = await asyncio.gather(*map(recorder.double, (1, "bad", 3)), return_exceptions=True)
        assert [results[0], results[2]] == [2, 6]
        assert isinstance(results[1], ValueError)

    play(main)


def test_an_exception_fails_its_batch():
    """What the function raises fails every call of that batch, and not the next batch; so does a wrong count."""

    async def main():
        recorder = Recorder()
        results = await asyncio.gather(*map(recorder.broken, (1, 2)), return_exceptions=True)
        assert [type(one) for one in results] == [KeyError, KeyError]
        results = await asyncio.gather(*map(recorder.wrong, (1, 2)), return_exceptions=True)
        assert [type(one) for one in results] == [BatchSizeError, BatchSizeError]
        assert str(results[0]) == "the batched function gave 1 results for 2 items"
        assert await recorder.double(4) == 8

    play(main)


def test_the_cancelled_and_the_late_are_dropped():
    """When a batch begins, whose caller has gone and whose deadline has passed are not in it."""

    async def main():
        recorder = Recorder()
        recorder.gate.clear()
        first = [asyncio.ensure_future(recorder.double(one)) for one in range(3)]
        await settle()
        gone = asyncio.ensure_future(recorder.double(3))
        late = for_request(recorder.double, 4, deadline=time.monotonic() - 1)
        last = [asyncio.ensure_future(recorder.double(one)) for one in (5, 6, 7)]
        await settle()
        gone.cancel()
        recorder.gate.set()
        assert await asyncio.gather(*first, *last) == [0, 2, 4, 10, 12, 14]
        with pytest.raises(Expired):
            await late
        assert recorder.batches == [[0, 1, 2], [5, 6, 7]]

    play(main)


def test_models_are_not_mixed():
    """Calls for different multiplexed models are batched apart, and the batch knows which model it is for."""

    async def main():
        recorder = Recorder()
        calls = [for_request(recorder.which, n, multiplexed_model_id="ab"[n % 2]) for n in range(4)]
        assert await asyncio.gather(*calls) == [(0, "a", 2), (1, "b", 2), (2, "a", 2), (3, "b", 2)]

    play(main)


def test_weights():
    """batch_size_fn says what items weigh; one above the limit is refused by itself."""

    async def main():
        recorder = Recorder()
        calls = [asyncio.ensure_future(recorder.weighed(one)) for one in (4, 5, 2, 11, 8)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert recorder.batches == [[4, 5], [2, 8]]
        assert isinstance(results[3], TooLarge)
        assert str(results[3]) == "an item of 11 by batch_size_fn is larger than the limit of 10 by batch_size_fn"

    play(main)


def test_several_arguments_and_keywords():
    """Each parameter is a list of its own, whichever way the calls give it; defaults count."""

    async def main():
        recorder = Recorder()
        results = await asyncio.gather(recorder.added(1, 2), recorder.added(3), recorder.added(right=5, left=4))
        assert results == [3, 13, 9]

    play(main)


def test_setters():
    """The limits change while it runs, for the batches that begin then."""

    async def main():
        recorder = Recorder()
        recorder.double.set_max_batch_size(2)
        recorder.double.set_batch_wait_timeout_s(1)
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await asyncio.gather(*map(recorder.double, range(3)))
            assert recorder.batches == [[0, 1], [2]]
            assert loop.time() == began + 1
        finally:
            recorder.double.set_max_batch_size(3)
            recorder.double.set_batch_wait_timeout_s(5)

    play(main)


def test_instances_apart():
    """Two instances never share a batch."""

    async def main():
        one, other = Recorder(), Recorder()
        await asyncio.gather(one.double(1), other.double(2))
        assert (one.batches, other.batches) == ([[1]], [[2]])

    play(main)


def test_functions():
    """A plain function is batched as well, with and without the brackets."""

    @serve.batch
    async def negate(items):
        return [-item for item in items]

    async def main():
        assert await asyncio.gather(*map(negate, (1, 2))) == [-1, -2]

    play(main)


async def collect(stream):
    return [item async for item in stream]


def test_streams():
    """Each step gives every call its item; StopIteration ends one of them, and the others go on."""

    async def main():
        recorder = Recorder()
        results = await asyncio.gather(*(collect(recorder.count_down(n)) for n in (1, 3, 2)))
        assert results == [[0], [0, 1, 2], [0, 1]]
        assert recorder.batches == [0, 1, 2, "closed"]

    play(main)


def test_a_stream_that_nobody_reads_is_closed():
    """When every caller has gone, the generator is closed and gives no further step."""

    async def main():
        recorder = Recorder()
        recorder.count_down.set_batch_wait_timeout_s(1)

        async def take_one(n):
            stream = recorder.count_down(n)
            try:
                return await anext(stream)
            finally:
                await stream.aclose()

        assert await asyncio.gather(take_one(1000), take_one(900)) == [0, 0]
        await settle()
        assert recorder.batches[-1] == "closed"
        assert len(recorder.batches) < 40

    play(main)


def test_a_slow_reader_holds_its_batch_up_by_so_much():
    """The batch waits for a call that does not take its items; nothing is kept without bound."""

    async def main():
        recorder = Recorder()
        slow = recorder.count_down(1000)
        first = asyncio.ensure_future(anext(slow))
        quick = asyncio.ensure_future(collect(recorder.count_down(20)))
        third = asyncio.ensure_future(collect(recorder.count_down(1)))
        assert await first == 0
        await settle()
        for _ in range(5):
            await settle()
        assert len(recorder.batches) <= 20
        await slow.aclose()
        assert await quick == list(range(20))
        assert await third == [0]

    play(main)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: serve.batch(max_batch_size=0), "max_batch_size: 0 is wrong"),
        (lambda: serve.batch(batch_wait_timeout_s=-1), "batch_wait_timeout_s: -1 is wrong"),
        (lambda: serve.batch(max_concurrent_batches=0), "max_concurrent_batches: 0 is wrong"),
        (lambda: serve.batch(lambda items: items), "batch: "),
        (lambda: Recorder.double.set_max_batch_size(0), "max_batch_size: 0 is wrong"),
    ],
)
def test_wrong_settings(make, said):
    """A wrong setting is named at once."""
    with pytest.raises(OptionError) as caught:
        make()
    assert str(caught.value).startswith(said)
