"""How much memory a process holds by itself, as the kernel counts it.

Counted are the pages that it has written and shares with nobody, and its share of what was swapped out. Not
counted: mapped weights (the page cache's, shared by replicas, given back under pressure), what a fork still
shares with the process that it came from, and the memory of a GPU. Source: proc_pid_smaps(5), smaps_rollup.
What must not live here: limits, and what happens above them (wear.py, succession.py).
"""

from __future__ import annotations

from pathlib import Path

import trio

COUNTED = frozenset(("Private_Dirty", "Private_Hugetlb", "SwapPss"))


def parse(rollup: str) -> int:
    """Bytes, from the text of a `smaps_rollup`."""
    total = 0
    for line in rollup.splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in COUNTED:
            total += int(rest.split()[0]) * 1024
    return total


async def own_memory(pid: int | None) -> int | None:
    """Bytes of a process; None where it has gone. The kernel walks its page tables, so a thread reads."""
    if pid is None or pid <= 0:
        return None
    try:
        return parse(await trio.to_thread.run_sync(Path(f"/proc/{pid}/smaps_rollup").read_text))
    except OSError:
        return None
