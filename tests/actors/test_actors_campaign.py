"""A campaign of faults in virtual time: hundreds of seeded lives of a small server, and the rules that hold in each.

`python tests/actors/test_actors_campaign.py 1000` lives so many (`just campaign`), `... 1 SEED` that one again.
The lives are in campaign_life.py, the faults in campaign_faults.py.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter

import pytest
import structlog
from campaign_life import Life
from trio._core import _run as trio_run
from universe import run_virtually

RUNS = 1000
PER_TEST = 100
SEEN = {
    *("answered", "conversed", "left", "Expired", "ActorCrashed", "Overloaded", "BadInput", "TooLarge"),
    *("NoSuchSequence", "NotStateful", "TooManySequences", "Draining", "NoSuchModel"),
}
"""How calls of a hundred lives end, among other ways."""


def run(seed: int) -> Counter[str]:
    """One life, the same for the same seed."""
    random.seed(seed)
    trio_run._r.seed(seed)
    life = Life(seed)
    run_virtually(life.run)
    return life.kinds


@pytest.fixture
def in_order(monkeypatch):
    """Let trio schedule by its seeded dice alone, so that a seed is one life."""
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)


@pytest.mark.parametrize("first", range(0, RUNS, PER_TEST))
def test_every_request_ends_exactly_once(first, in_order, logged):
    """Each request ends once, in time, by its own answer or a named error; the tree comes to rest; nothing is left."""
    kinds: Counter[str] = Counter()
    for seed in range(first, first + PER_TEST):
        logged.clear()
        try:
            kinds += run(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        assert [line for line in logged if "bug in the server" in str(line)] == [], f"seed {seed}"
    assert set(kinds) >= SEEN


def main(lives: int, first: int) -> None:
    """The long form; it goes on after a broken rule and tells every seed."""
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    bugs: list[str] = []
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        processors=[lambda _logger, _name, line: bugs.append(str(line)) or str(line)],
        logger_factory=lambda *_: structlog.testing.CapturingLogger(),
    )
    endings: Counter[str] = Counter()
    broken: list[int] = []
    for seed in range(first, first + lives):
        bugs.clear()
        try:
            endings += run(seed)
            assert [line for line in bugs if "bug in the server" in line] == []
        except Exception as error:
            if lives == 1:
                raise
            broken.append(seed)
            print(f"seed {seed}: {error!r}"[:500])
    if broken:
        sys.exit(f"{len(broken)} of {lives} lives broke a rule, seeds {broken}")
    print(f"{lives} lives in virtual time, {endings.total()} calls, each ended once: {dict(endings.most_common())}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
