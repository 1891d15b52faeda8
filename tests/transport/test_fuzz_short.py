"""The fuzz in short: some hundreds of seeds. The long form: benchmarks/fuzz.py."""

import trio.testing
from mutations import try_core, try_server

CORE, SERVER = 1500, 250


def test_mutated_conversations_break_no_rule_of_the_core():
    """Each seed gives faults, never exceptions, and nothing is held that should not be."""
    wrong = {seed: found for seed in range(CORE) if (found := try_core(seed))}

    assert not wrong


def test_mutated_conversations_leave_a_server_clean():
    """No exception gets to the server, and no call or connection is left when their time is over."""

    async def main():
        return {seed: found for seed in range(SERVER) if (found := await try_server(seed))}

    assert not trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
