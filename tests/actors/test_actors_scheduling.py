"""Order and batches in whole mailboxes and whole trees: tenants, priorities, weights, delay, prefetch, overload."""

# ruff: noqa: SIM300  # expected == actual

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from universe import run_virtually, universe

from actorserve import config
from actorserve.actors.claims import Claims
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Capabilities, Generate, Infer, OpenSequence
from actorserve.actors.wire import Outcome
from actorserve.errors import (
    BadInput,
    ConfigError,
    Expired,
    NoWorkers,
    Overloaded,
    TooLarge,
    TooManySequences,
    Unsupported,
)
from actorserve.scripted import ScriptedWorker

BOTH = Capabilities(infer=True, generate=True)
TENANTS = Claims(tenant_key="tenant")


def box(limit=100, batch_size=4, claims=TENANTS, **given) -> Mailbox:
    return Mailbox("m", limit=limit, batch_size=batch_size, max_delay_s=0.0, claims=claims, **given)


def ask(mailbox, name, *, deadline=float("inf"), kind=Infer, **metadata):
    """Ask under a name, with metadata."""
    return mailbox.ask(kind({"name": name.encode()}, {key: str(value) for key, value in metadata.items()}), deadline)


def names(envelopes) -> str:
    return " ".join(envelope.message.inputs["name"].decode() for envelope in envelopes)


# --- tenants and priorities ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Infer, Generate])
async def test_tenants_take_turns_in_both_lanes(kind):
    """One tenant's hundred do not stand before another's two, in batches and in streams."""
    mailbox = box()
    mailbox.learn(BOTH)
    for n in range(6):
        ask(mailbox, f"a{n}", tenant="a", kind=kind)
    for n in range(2):
        ask(mailbox, f"b{n}", tenant="b", kind=kind)
    lane = mailbox.batch_lane if kind is Infer else mailbox.stream_lane

    assert ["a0 a1 b0 b1", "a2 a3 a4 a5"] == [names(mailbox.take(lane, 4)) for _ in range(2)]


async def test_without_a_key_there_are_no_tenants():
    """Metadata that the config does not name changes nothing."""
    mailbox = box(claims=Claims())
    for n in range(4):
        ask(mailbox, f"{n}", tenant="ab"[n // 3])

    assert "0 1 2 3" == names(mailbox.take(mailbox.batch_lane, 4))


async def test_a_priority_is_a_head_start_of_a_second(autojump_clock):
    """It overtakes who came less than as many seconds before, and is fixed when it is queued."""
    mailbox = box(claims=Claims())
    ask(mailbox, "old")
    await trio.sleep(5)
    ask(mailbox, "new")
    ask(mailbox, "four", priority=4)
    ask(mailbox, "six", priority=6)
    await trio.sleep(100)

    assert "six old four new" == names(mailbox.take(mailbox.batch_lane, 4))


@pytest.mark.parametrize("wrong", ["10", "-1", "", "high", "1.5", "²", b"5"])
async def test_a_wrong_priority_is_the_callers_fault(wrong):
    """BadInput names the metadata; nothing is queued."""
    mailbox = box()
    with pytest.raises(BadInput, match="priority"):
        mailbox.ask(Infer({}, {"priority": wrong}))

    assert 0 == mailbox.waiting


# --- weight ------------------------------------------------------------------------------------


async def test_an_item_that_does_not_fit_closes_the_batch():
    """Bytes are counted over all inputs, and order is kept: what is lighter does not slip in."""
    mailbox = box(claims=Claims(weight="bytes", max_weight=10))
    for name in ("12345", "1234", "123456", "1"):
        ask(mailbox, name)

    assert ["12345 1234", "123456 1", ""] == [names(mailbox.take(mailbox.batch_lane, 4)) for _ in range(3)]


WEIGHTS = [
    (Claims(weight="bytes", max_weight=3), {}, TooLarge, "the request of 4 bytes is larger than the limit of 3 bytes"),
    (Claims(weight="metadata:tokens", max_weight=9), {"tokens": "10"}, TooLarge, "of 10 units.* limit of 9 units"),
    (Claims(weight="metadata:tokens", max_weight=9), {"tokens": "many"}, BadInput, "tokens: .*'many'"),
    (Claims(weight="metadata:tokens", max_weight=9), {"tokens": "-1"}, BadInput, "tokens: .*'-1'"),
    (Claims(weight="metadata:tokens", max_weight=9), {"tokens": "9" * 19}, BadInput, "tokens: "),
    (Claims(weight="metadata:tokens", max_weight=9), {}, BadInput, "tokens: .* missing"),
]


@pytest.mark.parametrize(("claims", "metadata", "error", "text"), WEIGHTS)
async def test_too_heavy_fails_alone(claims, metadata, error, text):
    """Above the limit: TooLarge with both sizes; no weight, or nonsense: BadInput. The others are not touched."""
    mailbox = box(claims=claims)
    ask(mailbox, "x", tokens=9)
    with pytest.raises(error, match=text):
        ask(mailbox, "four", **metadata)

    assert "x" == names(mailbox.take(mailbox.batch_lane, 4))


async def test_a_batch_full_by_weight_waits_for_nobody(autojump_clock):
    """With a delay of an hour a batch full by weight goes out at once, and is taken ahead of time."""

    class Slow(ScriptedWorker):
        seen: list[int] = []  # noqa: RUF012  # one per test

        async def infer(self, items):
            self.seen.append(len(items))
            await trio.sleep(10)
            return [b""] * len(items)

    async with universe(Slow) as u:
        await u.spawn(batch_size=100, max_batch_delay_s=3600.0, weight="bytes", max_batch_weight=10)
        replies = [u.mailbox.ask(Infer({"data": b"12345"})) for _ in range(6)]
        await trio.lowlevel.checkpoint()
        with trio.fail_after(31):
            for reply in replies:
                await reply.wait()

        assert [2, 2, 2] == Slow.seen


# --- the decision in a tree, in virtual time ---------------------------------------------------------


def timed(infer_s: float):
    """A worker that notes when which batch began."""

    class Timed(ScriptedWorker):
        began: list[tuple[float, str]] = []  # noqa: RUF012  # one per call of timed()

        async def infer(self, items):
            names = b" ".join(item.inputs["data"] for item in items).decode()
            self.began.append((round(trio.current_time(), 6), names))
            await trio.sleep(infer_s)
            return [item.inputs["data"] for item in items]

    return Timed


def data(name: str) -> Infer:
    return Infer({"data": name.encode()})


async def test_the_delay_counts_from_arrival_while_idle(autojump_clock):
    """A replica that becomes idle waits for what is left of the oldest's delay; one that waited long enough goes."""
    Worker = timed(3.0)  # noqa: N806  # a class
    async with universe(Worker) as u:
        await u.spawn(batch_size=4, max_batch_delay_s=5.0)
        start = trio.current_time()
        for _ in range(4):
            u.mailbox.ask(data("full"))
        await trio.sleep(1)
        u.mailbox.ask(data("b"))
        await trio.sleep(3)
        u.mailbox.ask(data("c"))
        await trio.sleep(4)  # t = 8: b has waited since 1, so the batch went at 6
        last = u.mailbox.ask(data("d"))
        await last.wait()
        began = [(at - round(start, 6), names) for at, names in Worker.began]

        assert [(0.0, "full full full full"), (6.0, "b c"), (13.0, "d")] == began


async def test_no_delay_for_what_has_waited_while_busy(autojump_clock):
    """The delay is no pause: what is past it when the replica gets idle goes at once."""
    Worker = timed(10.0)  # noqa: N806  # a class
    async with universe(Worker) as u:
        await u.spawn(batch_size=2, max_batch_delay_s=2.0)
        start = trio.current_time()
        for name in ("a", "b"):
            u.mailbox.ask(data(name))
        await trio.sleep(0.5)
        await u.mailbox.ask(data("c")).wait()

        assert [(0.0, "a b"), (10.0, "c")] == [(at - round(start, 6), names) for at, names in Worker.began]


async def test_one_that_gathers_blocks_no_other(autojump_clock):
    """While one replica waits for a fuller batch, what fills it goes out at once, and the next to another replica."""
    Worker = timed(50.0)  # noqa: N806  # a class
    async with universe(Worker, grace_s=200) as u:
        await u.spawn(workers_min=2, workers_max=2, batch_size=2, max_batch_delay_s=5.0)
        start = trio.current_time()
        u.mailbox.ask(data("a"))
        await trio.sleep(1)
        for name in ("b", "c", "d"):
            u.mailbox.ask(data(name))
        await trio.sleep(1)

        assert [(1.0, "a b"), (1.0, "c d")] == sorted((at - round(start, 6), names) for at, names in Worker.began)


async def test_prefetch_of_one_full_batch(autojump_clock):
    """A busy replica has one full batch ahead; a third stays in the mailbox, and so does one that is not full."""
    Worker = timed(10.0)  # noqa: N806  # a class
    async with universe(Worker) as u:
        await u.spawn(batch_size=2)
        in_hand = []
        for n in range(7):
            u.mailbox.ask(data(f"{n}"))
            await trio.sleep(0.01)
            in_hand.append((u.model().replicas[0].in_hand, u.mailbox.waiting))

        assert [(1, 0), (1, 1), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)] == in_hand
        await trio.sleep(10)
        assert (4, 2) == (u.model().replicas[0].in_hand, u.mailbox.waiting)


async def test_one_bad_item_fails_alone(autojump_clock):
    """Of a batch each item has its own ending."""

    class Picky(ScriptedWorker):
        async def infer(self, items):
            await trio.sleep(1)
            return [BadInput("data", "is 1") if item.inputs["data"] == b"1" else item.inputs["data"] for item in items]

    async with universe(Picky) as u:
        await u.spawn(batch_size=8)
        u.mailbox.ask(data("first"))
        await trio.lowlevel.checkpoint()
        replies = [u.mailbox.ask(data(f"{n}")) for n in range(3)]
        ends = []
        for reply in replies:
            try:
                ends.append((await reply.wait()).data)
            except BadInput:
                ends.append(Outcome.BAD_INPUT)

        assert [b"0", Outcome.BAD_INPUT, b"2"] == ends


# --- overload ------------------------------------------------------------------------------------


async def test_a_full_mailbox_keeps_a_place_for_every_tenant():
    """Who is above its share loses its newest, in either lane; who would get above it is refused."""
    mailbox = box(limit=4)
    mailbox.learn(BOTH)
    replies = {name: ask(mailbox, name, tenant="a") for name in ("a0", "a1")}
    replies |= {name: ask(mailbox, name, tenant="a", kind=Generate) for name in ("a2", "a3")}
    for name in ("b0", "b1"):
        ask(mailbox, name, tenant="b")
    with pytest.raises(Overloaded):
        ask(mailbox, "b2", tenant="b")
    for name in ("a3", "a2"):
        with pytest.raises(Overloaded):
            await replies[name].receive()

    assert ("a0 a1 b0 b1", "") == (names(mailbox.batch_lane), names(mailbox.stream_lane))


async def test_nobody_gives_way_for_what_cannot_be_queued():
    """A sequence too many, and a request that is wrong, cost no other request its place."""
    mailbox = box(limit=2, max_sequences=1)
    mailbox.learn(Capabilities(infer=True, generate=True, sequences=True))
    seat = ask(mailbox, "s", tenant="b", kind=OpenSequence)
    mailbox.take(mailbox.stream_lane, 1)
    for name in ("a0", "a1"):
        ask(mailbox, name, tenant="a")
    with pytest.raises(TooManySequences):
        ask(mailbox, "s", tenant="b", kind=OpenSequence)
    with pytest.raises(BadInput):
        ask(mailbox, "b", tenant="b", priority="x")

    assert (2, False) == (mailbox.waiting, seat.is_set)


async def test_retry_after_says_how_long_the_queue_takes(autojump_clock):
    """Ten wait and two a second are taken: come back in 5 s."""
    mailbox = box(limit=10, claims=Claims())
    for second in range(60):
        while mailbox.waiting < 10:
            ask(mailbox, f"{second}")
        if second:
            mailbox.take(mailbox.batch_lane, 2)
        await trio.sleep(1)
    while mailbox.waiting < 10:
        ask(mailbox, "last")
    with pytest.raises(Overloaded) as refused:
        ask(mailbox, "one more")

    assert 5.0 == pytest.approx(refused.value.retry_after_s, rel=0.15)


async def test_leaving_costs_the_same_however_many_wait():
    """What is kept of those who left is never more than who waits, and nothing once nobody does."""
    mailbox = box(limit=5000, claims=Claims())
    replies = [ask(mailbox, f"{n}") for n in range(5000)]
    most = 0
    for reply in replies[1::2] + replies[-2::-2]:
        reply.abandon()
        most = max(most, mailbox.batch_lane.garbage)
        assert mailbox.batch_lane.garbage <= mailbox.waiting

    assert (0, 0) == (mailbox.waiting, mailbox.batch_lane.garbage)
    assert most > 1000  # so leaving does not search the queue


async def test_what_comes_back_to_another_handler():
    """What was sent ahead and is not answered by the handler that came after ends, and takes no place."""
    mailbox = box()
    mailbox.learn(BOTH)
    reply = ask(mailbox, "x")
    taken = mailbox.take(mailbox.batch_lane, 1)
    mailbox.learn(Capabilities(infer=False, generate=False, sequences=True))
    mailbox.put_back(taken)
    with pytest.raises(Unsupported):
        await reply.wait()

    assert 0 == mailbox.waiting


# --- conservation -------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 12), st.booleans()),
        st.tuples(st.just("take"), st.booleans(), st.integers(1, 5)),
        st.tuples(st.just("abandon"), st.integers(0, 30)),
        st.tuples(st.just("put back"), st.integers(0, 5)),
        st.tuples(st.just("sleep"), st.sampled_from([0.5, 2.0])),
        st.tuples(st.just("learn")),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.booleans(), st.booleans(), st.integers(3, 12))
def test_every_request_ends_exactly_once(steps, tenants, weighed, limit):  # noqa: C901  # a step each
    """Refused, too heavy, given way, abandoned, expired, taken or failed at the end: one of them, and once."""

    async def main():  # noqa: C901  # a step each
        claims = Claims("tenant" if tenants else "", "metadata:w" if weighed else "count", 10 if weighed else 0)
        mailbox = box(limit=limit, claims=claims)
        replies, left, batches, refused = {}, set(), [], set()
        for n, step in enumerate(steps):
            match step:
                case ("ask", tenant, priority, weight, streams):
                    kind = Generate if streams else Infer
                    deadline = trio.current_time() + (1 if weight == 3 else 100)
                    try:
                        replies[n] = ask(
                            mailbox, f"{n}", deadline=deadline, kind=kind, tenant=tenant, priority=priority, w=weight
                        )
                    except Overloaded:
                        refused.add(n)
                        assert mailbox.waiting >= limit
                    except TooLarge:
                        refused.add(n)
                case ("take", streams, count):
                    batches.append(mailbox.take(mailbox.stream_lane if streams else mailbox.batch_lane, count))
                case ("abandon", m) if m in replies and not replies[m].is_set:
                    replies[m].abandon()
                    left.add(m)
                case ("put back", m) if batches:
                    mailbox.put_back(batches.pop(m % len(batches)))
                case ("sleep", seconds):
                    await trio.sleep(seconds)
                case ("learn",):
                    mailbox.learn(BOTH)
            assert mailbox.waiting == len(list(mailbox.batch_lane)) + len(list(mailbox.stream_lane))
        taken = {int(names([envelope])) for batch in batches for envelope in batch}
        assert len(taken) == sum(map(len, batches))
        mailbox.fail_all(lambda: NoWorkers("the end"))
        assert 0 == mailbox.waiting
        ends = Counter({**dict.fromkeys(refused, 1)})
        for n, reply in replies.items():
            ends[n] += (n in left) + reply.is_set + (n in taken and n not in left)
            if reply.is_set:
                with pytest.raises((Overloaded, Expired, NoWorkers)):
                    await (reply.wait() if hasattr(reply, "wait") else reply.receive())
        assert {1} >= set(ends.values())

    run_virtually(main)


# --- the keys ---------------------------------------------------------------------------------------


ROW = r"^\| `(\w+)` \| (\S+) \|"


def model(**keys) -> config.Model:
    return config.parse({"models": {"m": {"handler": "a:B", **keys}}}, folder=Path.cwd()).models["m"]


@pytest.mark.parametrize("weight", ["count", "bytes", "metadata:tokens"])
def test_the_keys_are_read(weight):
    """Each kind of weight, with its limit, and a tenant key."""
    read = model(weight=weight, max_batch_weight=100, tenant_key="x-tenant")

    assert (weight, 100, "x-tenant") == (read.weight, read.max_batch_weight, read.tenant_key)


def test_the_documented_example_is_right():
    """docs/scheduling.md: its example is read, and its table names the defaults."""
    page = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    parsed = config.parse(tomllib.loads(example), folder=Path.cwd()).models["minilm"]
    table = {key: tomllib.loads(f"x = {value.strip('`')}")["x"] for key, value in re.findall(ROW, page, re.MULTILINE)}

    assert ("metadata:tokens", 4096, "x-tenant") == (parsed.weight, parsed.max_batch_weight, parsed.tenant_key)
    assert {key: config.Model.model_fields[key].default for key in tomllib.loads(example)["models"]["minilm"]} == {
        "handler": "",
        **table,
    }


@pytest.mark.parametrize(
    ("keys", "key", "text"),
    [
        ({"weight": "tokens"}, "models.m.weight", "count"),
        ({"weight": "metadata:"}, "models.m.weight", "metadata:KEY"),
        ({"weight": "metadata:X-Tokens"}, "models.m.weight", "metadata:KEY"),
        ({"weight": "metadata:tokens-bin"}, "models.m.weight", "metadata:KEY"),
        ({"weight": "bytes"}, "models.m", "max_batch_weight is missing"),
        ({"max_batch_weight": -1}, "models.m.max_batch_weight", "at least 0"),
        ({"tenant_key": "X-Tenant"}, "models.m.tenant_key", "lower-case"),
    ],
)
def test_wrong_keys_are_named(keys, key, text):
    """What cannot be kept is refused with the key and what would be right."""
    with pytest.raises(ConfigError) as wrong:
        model(**keys)

    assert key == wrong.value.key
    assert text in wrong.value.text
