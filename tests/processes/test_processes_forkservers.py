"""Which model is forked from which forkserver, and for how long that lives: in virtual time, with none real."""

# ruff: noqa: SIM300  # expected == actual

from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from actorserve.actors.forkservers import KEEP_S, Forkservers
from actorserve.actors.messages import Environment, ModelSpec
from actorserve.actors.supervision import BACKOFF_LAST_S, JITTER
from actorserve.errors import LoadFailed


class Fake:
    """A forkserver that only lives."""

    def __init__(self, *, environment, start, python):
        self.start, self.python, self.runs, self.pid = start, python, False, None

    async def run(self):
        self.runs = True
        try:
            await trio.sleep_forever()
        finally:
            self.runs = False


class Pip:
    """Takes 5 s to install; `failure` is raised instead."""

    def __init__(self, failure=None):
        self.began, self.ended, self.failure = 0, 0, failure

    async def __call__(self, model, cache_dir, environment):
        self.began += 1
        await trio.sleep(5)
        if self.failure is not None:
            raise self.failure
        self.ended += 1
        return f"{cache_dir}/{'+'.join(model.environment.requirements)}/bin/python"


@asynccontextmanager
async def pool(pip):
    """Forkservers that run until the block ends."""
    forkservers = Forkservers(Path("/cache"), environment={"PATH": "/bin"}, make=Fake, installer=pip)
    async with trio.open_nursery() as nursery:
        await nursery.start(forkservers.run)
        yield forkservers
        nursery.cancel_scope.cancel()


def model(name="m", **given):
    return ModelSpec(name, "1", "a:B", Path("/m"), environment=Environment(**given))


async def test_plain_models_share_one(autojump_clock):
    """No environment of its own, no forkserver of its own; variables that can wait for the fork change nothing."""
    async with pool(Pip()) as forkservers:
        _, first = await forkservers.lease(model())
        _, second = await forkservers.lease(model(env={"COLOUR": "red"}, path=("/x",)))
        assert first is second is forkservers.shared


async def test_the_same_packages_are_installed_once(autojump_clock):
    """Who wants the same waits for the same installation; other packages, or variables, are another forkserver."""
    pip, found = Pip(), {}

    async def lease(name, spec):
        _, found[name] = await forkservers.lease(spec)

    async with pool(pip) as forkservers:
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                nursery.start_soon(lease, name, model(name, requirements=("fruit",)))
            nursery.start_soon(lease, "c", model("c", requirements=("nuts",)))
            nursery.start_soon(lease, "d", model("d", env={"LD_PRELOAD": "x.so"}))
        assert 2 == pip.began
        assert found["a"] is found["b"]
        assert 3 == len({id(found[name]) for name in "acd"})
        assert ("/cache/fruit/bin/python", {"LD_PRELOAD": "x.so"}) == (found["a"].python, found["d"].start)


async def test_stopped_with_its_last_worker(autojump_clock):
    """It runs while it has a worker, longer than the longest backoff after that, then it is stopped; and made anew."""
    assert KEEP_S > BACKOFF_LAST_S * (1 + JITTER)
    async with pool(Pip()) as forkservers:
        spec = model(requirements=("fruit",))
        lease, forkserver = await forkservers.lease(spec)
        again, _ = await forkservers.lease(spec)
        lease.use(-1)
        await trio.sleep(10 * KEEP_S)
        assert forkserver.runs
        again.use(-1)
        await trio.sleep(KEEP_S - 1)
        restarted, same = await forkservers.lease(spec)
        assert same is forkserver
        restarted.use(-1)
        await trio.sleep(KEEP_S - 1)
        assert forkserver.runs
        await trio.sleep(2)
        assert not forkserver.runs
        _, other = await forkservers.lease(spec)
        assert other is not forkserver
        await trio.testing.wait_all_tasks_blocked()
        assert (other.runs, forkservers.shared.runs) == (True, True)


async def test_a_failure_is_told_to_all_who_wait(autojump_clock):
    """Every replica that waits for an installation gets its reason; who comes later has it tried again."""
    pip, reasons = Pip(LoadFailed("no such package")), []

    async def lease():
        with pytest.raises(LoadFailed, match="no such package"):
            await forkservers.lease(model(requirements=("fruit",)))
        reasons.append(1)

    async with pool(pip) as forkservers:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease)
            nursery.start_soon(lease)
        assert (2, 1) == (len(reasons), pip.began)
        await lease()
        assert 2 == pip.began


async def test_no_descriptors_is_no_permanent_failure(autojump_clock):
    """What the machine lacks for a moment fails the start, and may be tried again; the server stays."""
    async with pool(Pip(OSError("too many open files"))) as forkservers:
        with pytest.raises(LoadFailed) as raised:
            await forkservers.lease(model(requirements=("fruit",)))
        assert not raised.value.permanent


class Stubborn(Pip):
    """Takes 3 s to be killed."""

    async def __call__(self, model, cache_dir, environment):
        try:
            return await super().__call__(model, cache_dir, environment)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)


async def test_who_comes_while_an_installation_is_killed_gets_another(autojump_clock):
    """It was cancelled for want of anybody who waits; that is no reason to fail the one who asks a second later."""
    pip = Stubborn()
    async with pool(pip) as forkservers:
        spec = model(requirements=("fruit",))
        with trio.move_on_after(2):
            await forkservers.lease(spec)
        await trio.sleep(1)
        _, forkserver = await forkservers.lease(spec)
        assert ("/cache/fruit/bin/python", 2, 1) == (forkserver.python, pip.began, pip.ended)


async def test_an_installation_that_nobody_waits_for_ends(autojump_clock):
    """It goes on while one waits for it, and is cancelled with the last."""
    pip = Pip()
    async with pool(pip) as forkservers:
        spec = model(requirements=("fruit",))
        with trio.move_on_after(2):
            await forkservers.lease(spec)
        await trio.sleep(10)
        assert (1, 0) == (pip.began, pip.ended)
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(2):
                nursery.start_soon(forkservers.lease, spec)
                await forkservers.lease(spec)
        assert (2, 1) == (pip.began, pip.ended)
