"""Who is next: exact order inside a tenant, fair turns between tenants, compared with naive models of both."""

# ruff: noqa: SIM300  # expected == actual

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorserve.actors.order import Line, Queued, rank
from actorserve.actors.turns import MOST_TENANTS, REST, Turns

NEVER = float("inf")


class Item(Queued):
    """What waits in these tests."""

    __slots__ = ("charge", "priority", "tenant", "weight")

    def __init__(self, number, arrival=0.0, *, tenant="", priority=0, weight=1, deadline=NEVER) -> None:
        self.number, self.arrival, self.deadline = number, arrival, deadline
        self.tenant, self.priority, self.weight, self.charge = tenant, priority, weight, 0

    def __repr__(self) -> str:
        return f"<{self.number} of {self.tenant} at {self.arrival:g} p{self.priority} w{self.weight}>"


class NaiveTurns:
    """The rules of contracts §3 as one would say them: lists, scans, one round after another."""

    def __init__(self, batch_size: int, max_weight: int = 0) -> None:
        self.batch_size, self.max_weight = batch_size, max_weight
        self.limit = max_weight or batch_size
        self.order: list = []
        self.items: dict = {}
        self.deficit: dict = {}
        self.begun = False

    def push(self, item) -> None:
        if item.tenant not in self.items:
            self.order.append(item.tenant)
            self.items[item.tenant], self.deficit[item.tenant] = [], 0
        self.items[item.tenant].append(item)

    def restore(self, item, charge) -> None:
        self.push(item)
        self.deficit[item.tenant] += charge

    def remove(self, item) -> None:
        tenant = item.tenant
        self.items[tenant].remove(item)
        if not self.items[tenant]:
            if self.order[0] == tenant:
                self.begun = False
            self.order.remove(tenant)
            del self.items[tenant], self.deficit[tenant]

    def charge(self, item) -> int:
        return max(item.weight, -(-self.max_weight // self.batch_size)) if self.max_weight else 1

    def take(self, count: int, now: float):
        taken, expired, left = [], [], self.max_weight or NEVER
        while self.order and len(taken) < count:
            tenant = self.order[0]
            if not self.begun:
                self.deficit[tenant] += max(1, self.limit // len(self.order))
                self.begun = True
            item = min(self.items[tenant], key=rank)
            weight = item.weight if self.max_weight else 0
            if item.deadline <= now:
                expired.append(item)
            elif self.charge(item) > self.deficit[tenant]:
                self.order.append(self.order.pop(0))
                self.begun = False
                continue
            elif weight > left:
                break
            else:
                taken.append(item)
                self.deficit[tenant] -= self.charge(item)
                left -= weight
            self.remove(item)
        return taken, expired


class NaiveLine(NaiveTurns):
    """One tenant: no turns, nothing but the order and the limits."""

    def charge(self, item) -> int:
        return 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 3), st.integers(0, 9), st.integers(1, 20), st.booleans()),
        st.tuples(st.just("take"), st.integers(1, 8)),
        st.tuples(st.just("discard"), st.integers(0, 60)),
        st.tuples(st.just("put back"), st.integers(0, 8)),
        st.tuples(st.just("pass"), st.sampled_from([0.3, 1.0, 4.0])),
    ),
    max_size=80,
)


class Pair:
    """A lane and its naive model, told the same."""

    def __init__(self, lane, naive, *, tenants: bool) -> None:
        self.lane, self.naive, self.tenants = lane, naive, tenants
        self.now = 0.0
        self.live, self.batches, self.ends = [], [], Counter()
        self.pushed = 0

    def push(self, tenant, priority, weight, late) -> None:
        item = Item(self.pushed, self.now, tenant=tenant if self.tenants else "", priority=priority, weight=weight)
        item.deadline = self.now + 2 if late else NEVER
        self.pushed += 1
        for one in (self.lane, self.naive):
            one.push(item)
        self.live.append(item)

    def take(self, count) -> None:
        expected = self.naive.take(count, self.now)
        assert expected == self.lane.take(count, self.now)
        taken, expired = expected
        self.live = [item for item in self.live if item not in taken and item not in expired]
        self.ends.update(item.number for item in expired)
        if taken:
            self.batches.append(taken)

    def discard(self, n) -> None:
        item = self.live.pop(n % len(self.live))
        self.lane.discard(item)
        self.naive.remove(item)
        self.ends[item.number] += 1

    def put_back(self, n) -> None:
        for item in sorted(self.batches.pop(n % len(self.batches)), key=lambda item: item.number, reverse=True):
            self.naive.restore(item, item.charge)
            self.lane.restore(item)
            self.live.append(item)

    def check(self) -> None:
        lane = self.lane
        assert 0 <= lane.garbage <= lane.count
        assert sorted(item.number for item in self.live) == [item.number for item in lane]
        assert len(self.live) == lane.count == len(lane)
        assert min((item.arrival for item in self.live), default=NEVER) == lane.oldest_arrival()
        assert all(item.lane is lane for item in self.live)
        if lane.max_weight:
            assert sum(item.weight for item in self.live) == lane.weight

    def run(self, steps) -> None:
        for step in steps:
            match step:
                case ("push", tenant, priority, weight, late):
                    self.push(tenant, priority, weight, late)
                case ("take", count):
                    self.take(count)
                case ("discard", n) if self.live:
                    self.discard(n)
                case ("put back", n) if self.batches:
                    self.put_back(n)
                case ("pass", seconds):
                    self.now += seconds
            self.check()
        self.ends.update(item.number for batch in self.batches for item in batch)
        self.ends.update(item.number for item in self.lane.clear())
        assert 0 == len(self.lane) == len(self.lane.clear())
        assert Counter(range(self.pushed)) == self.ends


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([0, 20, 33]))
def test_a_line_is_what_its_rules_say(steps, max_weight):
    """Whatever comes, goes, expires and comes back: the naive order, exact counts, garbage below what lives."""
    Pair(Line(max_weight), NaiveLine(8, max_weight), tenants=False).run(steps)


@settings(max_examples=500, deadline=None)
@given(STEPS, st.sampled_from([1, 3, 8]), st.sampled_from([0, 20, 33, 500]))
def test_turns_are_what_their_rules_say(steps, batch_size, max_weight):
    """The same with tenants: the naive deficit round robin, every item in exactly one place at the end."""
    Pair(Turns(batch_size, max_weight), NaiveTurns(batch_size, max_weight), tenants=True).run(steps)


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(0, 9), st.sampled_from([Line, lambda: Turns(5)]))
def test_one_tenant_and_one_priority_is_exact_fifo(counts, priority, make):
    """Whatever the batches' sizes."""
    lane, came, went = make(), 0, []
    for count in counts:
        for _ in range(count):
            lane.push(Item(came, came / 10, priority=priority))
            came += 1
        went += lane.take(max(1, count - 1), 0.0)[0]
    went += lane.take(came + 1, 0.0)[0]

    assert list(range(came)) == [item.number for item in went]


PRIORITIES = [
    ("9 s of head start are not enough", [(0.0, 0), (9.5, 9)], [0, 1]),
    ("9 s of head start are enough", [(0.0, 0), (8.5, 9)], [1, 0]),
    ("equal after the head start: the number", [(0.0, 0), (9.0, 9)], [0, 1]),
    ("9 is first", [(0.0, 0), (0.0, 3), (0.0, 9)], [2, 1, 0]),
]


@pytest.mark.parametrize(("given_", "order"), [row[1:] for row in PRIORITIES], ids=[row[0] for row in PRIORITIES])
def test_priorities(given_, order):
    """The order is by arrival less a second for each priority."""
    line = Line()
    for n, (arrival, priority) in enumerate(given_):
        line.push(Item(n, arrival, priority=priority))

    assert order == [item.number for item in line.take(9, 9.5)[0]]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 12), st.integers(1, 40), st.sampled_from([0, 40, 64, 1000]), st.integers(0, 2**32), st.integers(1, 9)
)
def test_no_tenant_lags(tenants, batch_size, max_weight, seed, takes):
    """Of tenants that always wait, none ever gets more than a quantum and its largest item ahead of another."""
    dice = random.Random(seed)  # noqa: S311  # not a secret
    lane = Turns(batch_size, max_weight)
    most = max_weight // 2 or 1
    for n in range(tenants * 200):
        lane.push(Item(n, tenant=n % tenants, weight=dice.randint(1, most)))
    largest = max(most, -(-max_weight // batch_size)) if max_weight else 1
    paid = Counter(dict.fromkeys(range(tenants), 0))
    while len(lane.counts()) == tenants:
        quantum = lane.quantum
        for item in lane.take(takes, 0.0)[0]:
            paid[item.tenant] += item.charge
        if len(lane.counts()) == tenants:
            assert max(paid.values()) - min(paid.values()) <= quantum + largest


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 32), st.data())
def test_a_newcomer_waits_for_one_turn_of_each(tenants, batch_size, data):
    """Before it each other tenant gets one turn at most, however many requests it has waiting or brings along."""
    lane = Turns(batch_size)
    number = iter(range(10**9))
    for _ in range(50):
        for tenant in range(tenants):
            lane.push(Item(next(number), tenant=tenant))
    for count in data.draw(st.lists(st.integers(1, batch_size), max_size=10)):
        lane.take(count, 0.0)
    most = lane.quantum
    lane.push(Item(next(number), tenant="new"))
    before = Counter()
    while "new" not in before:
        before.update(item.tenant for item in lane.take(1, 0.0)[0])
        lane.push(Item(next(number), tenant=0))

    assert all(many <= most for many in before.values())


def test_heavy_items_of_many_tenants_cost_no_rounds():
    """Where every item is as heavy as a batch, a batch is one item, found without going round once for each quantum."""
    lane = Turns(1000, 10**15)
    for n in range(MOST_TENANTS):
        lane.push(Item(n, tenant=n, weight=10**15 - n))
    ends = 0
    end_turn = lane._end_turn

    class Counting(Turns):
        __slots__ = ()

        def _end_turn(self, passed):
            nonlocal ends
            ends += 1
            end_turn(passed)

    lane.__class__ = Counting
    batches = [[item.number for item in lane.take(1000, 0.0)[0]] for _ in range(20)]

    assert {1} == set(map(len, batches))
    assert ends <= 4 * MOST_TENANTS


@pytest.mark.parametrize("priority", [0, 3])
def test_who_left_behind_the_last_is_let_go(priority):
    """Never more is kept than lives, where those who left stood behind those who are taken: at last nothing is."""
    line = Line()
    items = [Item(number, priority=priority) for number in range(4)]
    for item in items:
        line.push(item)
    line.discard(items[2])
    line.discard(items[3])
    for left in (1, 0):
        line.take(1, 0.0)
        assert left == line.count >= line.garbage


def test_light_items_pay_for_their_place():
    """A tenant with a batch full of feathers does not keep the others out of the next one."""
    lane = Turns(10, 1000)
    for n in range(100):
        lane.push(Item(n, tenant="feathers", weight=1))
    lane.push(Item(100, tenant="stone", weight=500))

    assert {"feathers": 5, "stone": 1} == Counter(item.tenant for item in lane.take(6, 0.0)[0])


def test_the_rest_share_one_seat():
    """At most 1,000 tenants have a line; the others wait in one, in order, until there is room again."""
    lane = Turns(10)
    for n in range(MOST_TENANTS + 5):
        lane.push(Item(n, tenant=n))

    assert (MOST_TENANTS + 1, 5) == (len(lane.counts()), lane.counts()[REST])
    first, *_ = lane.take(1, 0.0)[0]
    assert (0, "later") == (first.tenant, lane.seat("later"))


def test_an_empty_tenant_is_forgotten_with_its_deficit():
    """What it did not use of its turn is not there when it comes back."""
    lane = Turns(10)
    lane.push(Item(0, tenant="a"))
    lane.push(Item(1, tenant="b"))
    lane.take(2, 0.0)
    for n in range(2, 30):
        lane.push(Item(n, tenant="ab"[n % 2]))

    assert {"a": 5, "b": 5} == Counter(item.tenant for item in lane.take(10, 0.0)[0])


def test_the_expired_are_not_charged():
    """A turn's quantum is spent on what goes out alone."""
    lane = Turns(4)
    for n in range(8):
        lane.push(Item(n, tenant="a", deadline=0.0 if n < 4 else NEVER))
        lane.push(Item(10 + n, tenant="b"))
    taken, expired = lane.take(4, 1.0)

    assert ([0, 1, 2, 3], {"a": 2, "b": 2}) == ([item.number for item in expired], Counter(i.tenant for i in taken))
