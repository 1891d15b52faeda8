"""Sends the same calls to a real Ray Serve 2.60.0 and to our server, and compares the answers field by field.

    python tests/diff_ray/run_ray.py --live            both, now; exits 1 where an unlisted difference is left
    python tests/diff_ray/run_ray.py --record FILE     the real one only, twice, into FILE
    python tests/diff_ray/run_ray.py --replay FILE     ours only, against FILE

Ray Serve is installed from PyPI into an environment of its own below the cache folder. Its gRPC proxy listens on all
interfaces, on a free port, while it runs.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import ray_calls
import ray_cases
import ray_differences
import ray_peers
from ray_shared import compare, sort_out
from ray_steps import Scenario

CACHE = Path.home() / ".cache" / "actorserve"
Answers = dict[str, ray_calls.Answer]
Start = Callable[[Path, float], AbstractContextManager[ray_calls.Peer]]


def answers(
    start: Start, scenarios: Iterable[Scenario], *, say: Callable[[str], None] = print, at_once: bool = False
) -> Answers:
    """Every case's answer of one server, which is started once for each `request_timeout_s`; `at_once`: all of them."""
    scenarios = tuple(scenarios)

    def of(limit: float) -> Answers:
        given: Answers = {}
        mine = [scenario for scenario in scenarios if scenario.timeout_s == limit]
        if not mine:
            return given
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, start(Path(name), limit) as peer:
            for scenario in mine:
                began = time.monotonic()
                given |= dict(ray_calls.run(peer, scenario))
                say(f"  {scenario.name}: {time.monotonic() - began:.1f} s")
        return given

    with ThreadPoolExecutor(len(ray_cases.LIMITS) if at_once else 1) as servers:
        return {case: answer for some in servers.map(of, ray_cases.LIMITS) for case, answer in some.items()}


def record(cache: Path, scenarios: Iterable[Scenario]) -> dict[str, Any]:
    """Two takes of the real server: each case's answers, one where both agree, and the fields in which they do not."""
    scenarios = tuple(scenarios)
    first, second = (answers(partial(ray_peers.ray, cache=cache), scenarios) for _ in range(2))
    recorded = {}
    for name, answer in first.items():
        fields = compare.unstable(answer, second[name])
        recorded[name] = {"takes": [answer, second[name]], "unstable": fields} if fields else {"takes": [answer]}
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    versions = ray_peers.versions(cache)
    return {"made by": "tests/diff_ray/run_ray.py", "date": today, "versions": versions, "cases": recorded}


def against(recorded: dict[str, Any], mine: Answers) -> list[compare.Found]:
    """Our answers compared with recorded ones."""
    return [
        found
        for name, answer in mine.items()
        for found in compare.differ(
            name, [settled(name, take) for take in recorded["cases"][name]["takes"]], settled(name, answer)
        )
    ]


def settled(name: str, answer: ray_calls.Answer) -> ray_calls.Answer:
    """An answer without a race: when a client's own deadline passes, its word or the server's is first, by chance."""
    if answer.get("code") == "DEADLINE_EXCEEDED" and name in ray_cases.WITH_DEADLINE:
        return answer | {"text": "(at the client's deadline)", "trailers": {}}
    return answer


def report(found: list[compare.Found], mine: Answers) -> int:
    """Print the table; 1 if a difference is left that is not listed, or a listed one does not show."""
    left, unused = sort_out(found, mine, ray_differences.LISTED)
    for one in left:
        print(f"DIFFERS {one.case} {one.field}\n    Ray Serve: {one.theirs!r}\n    actorserve: {one.ours!r}")
    for entry in unused:
        print(f"LISTED, NOT SEEN {entry.cases} {entry.fields}: {entry.reason}")
    listed = {one.case for one in found} - {one.case for one in left}
    print(
        f"{len(mine)} cases compared; {len({one.case for one in left})} have {len(left)} differences that are not "
        f"listed, {len(listed)} listed ones only; {len(unused)} entries of the list unused"
    )
    return 1 if left or unused else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--live", action="store_true")
    what.add_argument("--record", type=Path, metavar="FILE")
    what.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="*", metavar="SCENARIO", help="some scenarios instead of all")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where Ray Serve is installed")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write our answers too")
    options = parser.parse_args()
    scenarios = tuple(one for one in ray_cases.SCENARIOS if not options.only or one.name in options.only)
    recorded = json.loads(options.replay.read_text()) if options.replay else record(options.cache, scenarios)
    if options.record:
        options.record.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
        print(
            f"{len(recorded['cases'])} cases, {sum('unstable' in one for one in recorded['cases'].values())} unstable"
        )
        return 0
    mine = answers(ray_peers.ours, scenarios)
    if options.answers:
        options.answers.write_text(json.dumps({"cases": {name: {"takes": [one]} for name, one in mine.items()}}))
    return report(against(recorded, mine), mine)


if __name__ == "__main__":
    sys.exit(main())
