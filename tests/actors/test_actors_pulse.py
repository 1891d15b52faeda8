"""When a worker is pinged and when it is taken for dead: the pure rules."""

# ruff: noqa: SIM300  # expected == actual

from hypothesis import given
from hypothesis import strategies as st

from actorserve.actors.pulse import IDLE_BEATS, NO_PONG_BEATS, Beat, Pulse


def beats(pulse: Pulse, busy: bool, count: int) -> list[Beat]:
    return [pulse.beat(busy=busy) for _ in range(count)]


def test_with_work_every_second():
    """A worker with work that answers is pinged at every beat, for ever."""
    pulse = Pulse()
    for _ in range(1000):
        assert Beat.PING is pulse.beat(busy=True)
        pulse.heard()


def test_without_work_now_and_then():
    """A worker without work that answers is pinged at every fifth beat."""
    pulse = Pulse()
    for _ in range(100):
        assert [Beat.NOTHING] * (IDLE_BEATS - 1) + [Beat.PING] == beats(pulse, False, IDLE_BEATS)
        pulse.heard()


def test_silence_is_death():
    """Ten beats after the first ping that is not answered: dead, with work or without."""
    assert [Beat.PING] * NO_PONG_BEATS + [Beat.DEAD] == beats(Pulse(), True, NO_PONG_BEATS + 1)
    idle = beats(Pulse(), False, IDLE_BEATS + NO_PONG_BEATS)
    assert [Beat.NOTHING] * (IDLE_BEATS - 1) + [Beat.PING] * NO_PONG_BEATS + [Beat.DEAD] == idle


@given(st.lists(st.tuples(st.booleans(), st.integers(0, NO_PONG_BEATS - 1)), max_size=200))
def test_whoever_answers_in_time_lives(life):
    """A PONG within ten beats of its ping keeps a worker alive, whatever work comes and goes."""
    pulse = Pulse()
    for busy, late in life:
        if pulse.beat(busy=busy) is Beat.PING:
            assert Beat.DEAD not in beats(pulse, busy, late)
            pulse.heard()


@given(st.lists(st.booleans(), min_size=IDLE_BEATS + NO_PONG_BEATS))
def test_nobody_is_silent_for_longer(life):
    """A worker that never answers is dead after at most 15 beats, whatever work comes and goes."""
    pulse = Pulse()
    assert Beat.DEAD in [pulse.beat(busy=busy) for busy in life]
