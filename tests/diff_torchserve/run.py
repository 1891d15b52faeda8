"""Sends the same calls to a real TorchServe 0.12.0 and to our server, and compares the answers field by field.

    python tests/diff_torchserve/run.py --live            both, now; exits 1 where an unlisted difference is left
    python tests/diff_torchserve/run.py --record FILE     the real one only, twice, into FILE
    python tests/diff_torchserve/run.py --replay FILE     ours only, against FILE

Needs Java 17 on the PATH (Debian: openjdk-17-jre-headless) but for --replay; TorchServe itself is installed from PyPI
into an environment of its own below the cache folder, beside the torch that is here.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import cases
import compare
import differences
import grpc_calls
import packs
import peers
from steps import Scenario

CACHE = Path.home() / ".cache" / "actorserve"
Answers = dict[str, grpc_calls.Answer]
Start = Callable[[Path, Path, str, str], AbstractContextManager[grpc_calls.Peer]]


def answers(start: Start, scenarios: Iterable[Scenario], *, say: Callable[[str], None] = print) -> Answers:
    """Every case's answer of one server, which is started once for each configuration."""
    given: Answers = {}
    for configuration in cases.CONFIGURATIONS:
        mine = [scenario for scenario in scenarios if scenario.configuration == configuration]
        if not mine:
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            folder, store = Path(name) / "home", Path(name) / "store"
            folder.mkdir()
            packs.fill(store, Path(name) / "sources")
            with peers.file_server(store) as web, start(folder, store, configuration, web) as peer:
                for scenario in mine:
                    began = time.monotonic()
                    given |= dict(grpc_calls.run(peer, scenario))
                    say(f"  {scenario.name}: {time.monotonic() - began:.1f} s")
    return given


def record(cache: Path, scenarios: Iterable[Scenario]) -> dict[str, Any]:
    """Two takes of the real server: each case's answers, one where both agree, and the fields in which they do not."""
    scenarios = tuple(scenarios)
    first, second = (answers(partial(peers.torchserve, cache=cache), scenarios) for _ in range(2))
    recorded = {}
    for name, answer in first.items():
        fields = compare.unstable(answer, second[name])
        recorded[name] = {"takes": [answer, second[name]], "unstable": fields} if fields else {"takes": [answer]}
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    return {"made by": "tests/diff_torchserve/run.py", "date": today, "versions": peers.versions(), "cases": recorded}


def against(recorded: dict[str, Any], mine: Answers) -> list[compare.Found]:
    """Our answers compared with recorded ones."""
    return [
        one for name, answer in mine.items() for one in compare.differ(name, recorded["cases"][name]["takes"], answer)
    ]


def report(found: list[compare.Found], mine: Answers) -> int:
    """Print the table; 1 if a difference is left that is not listed, or a listed one does not show."""
    left, unused = differences.sort_out(found, mine, differences.LISTED)
    for one in left:
        print(f"DIFFERS {one.case} {one.field}\n    TorchServe: {one.theirs!r}\n    actorserve: {one.ours!r}")
    for entry in unused:
        print(f"LISTED, NOT SEEN {entry.cases} {entry.fields}: {entry.reason}")
    listed = {one.case for one in found} - {one.case for one in left}
    cases_left = {one.case for one in left}
    print(
        f"{len(mine)} cases compared; {len(cases_left)} have {len(left)} differences that are not listed, "
        f"{len(listed)} listed ones only; {len(unused)} entries of the list unused"
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
    parser.add_argument("--cache", type=Path, default=CACHE, help="where TorchServe is installed")
    options = parser.parse_args()
    scenarios = tuple(one for one in cases.SCENARIOS if not options.only or one.name in options.only)
    if not options.replay and (why := peers.missing()):
        parser.error(why)
    recorded = json.loads(options.replay.read_text()) if options.replay else record(options.cache, scenarios)
    if options.record:
        options.record.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
        print(
            f"{len(recorded['cases'])} cases, {sum('unstable' in one for one in recorded['cases'].values())} unstable"
        )
        return 0
    mine = answers(peers.ours, scenarios)
    return report(against(recorded, mine), mine)


if __name__ == "__main__":
    sys.exit(main())
