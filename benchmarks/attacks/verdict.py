"""What an attack did, against the five bars that a server must hold; as a line and as a row of a table.

The bars: the good client's p99 is at most three times that without the attack; none of its calls fails; the server
grows by less than 50 MB; every connection of the attacker is closed, in the way that docs/security.md says (GOAWAY
where it can get through); no traceback is in the log.
What must not live here: processes, sockets, printing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from attacks.kinds import Attack

MOST_RATIO = 3.0
MOST_GROWTH_MIB = 50e6 / (1 << 20)


@dataclass
class Result:
    """What one attack did, round by round."""

    before_ms: list[float] = field(default_factory=list)  # the good client's p99
    beside_ms: list[float] = field(default_factory=list)
    calls: int = 0
    errors: int = 0
    grown_mib: float = 0.0
    made: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    after_s: list[float] = field(default_factory=list)
    tracebacks: int = 0

    @property
    def ratio(self) -> float:
        """How much the good client's p99 suffered."""
        return median(self.beside_ms) / median(self.before_ms)

    @property
    def endings(self) -> str:
        """How the attacker's connections ended, the commonest first, and after how long."""
        how = ", ".join(f"{count} x {name}" for name, count in self.closed.most_common(3)) or "none closed"
        return f"{how}, after {median(self.after_s):.1f} s" if self.after_s else how


def shortfalls(attack: Attack, result: Result) -> list[str]:
    """Say which bars were missed, and by how much."""
    short = []
    if result.ratio > MOST_RATIO:
        short.append(f"p99 x {result.ratio:.1f}")
    if result.errors or not result.calls:
        short.append(f"{result.errors} errors in {result.calls} calls")
    if result.grown_mib >= MOST_GROWTH_MIB:
        short.append(f"RSS +{result.grown_mib:.0f} MiB")
    wrong = {how: count for how, count in result.closed.items() if not how.startswith(attack.ends)}
    if wrong:
        short.append(f"closed otherwise: {wrong}")
    rounds = len(result.beside_ms)
    if result.closed.total() < attack.connections * rounds:
        short.append(f"only {result.closed.total()} of {attack.connections * rounds} connections closed")
    if result.tracebacks:
        short.append(f"{result.tracebacks} tracebacks")
    return short


def line(name: str, attack: Attack, result: Result) -> str:
    """Give one line for people."""
    short = shortfalls(attack, result)
    return (
        f"{'PASS' if not short else 'FELL SHORT'} {name:<17} p99 {median(result.before_ms):6.2f} -> "
        f"{median(result.beside_ms):6.2f} ms (x {result.ratio:.1f})  calls {result.calls}  errors {result.errors}  "
        f"RSS +{result.grown_mib:.1f} MiB  tracebacks {result.tracebacks}  closed of {result.made}: {result.endings}"
        + "".join(f"\n    {one}" for one in short)
    )


HEAD = "| attack | p99 ms without -> with | errors | RSS | attackers closed | |\n|---|---|---|---|---|---|\n"


def row(name: str, attack: Attack, result: Result) -> str:
    """Give one row of docs/security.md's table."""
    how = result.closed.most_common(1)[0][0].strip() if result.closed else "none"
    after = f", after {median(result.after_s):.1f} s" if result.after_s and median(result.after_s) >= 1 else ""
    verdict = "; ".join(shortfalls(attack, result)) or "pass"
    return (
        f"| {name} | {median(result.before_ms):.2f} -> {median(result.beside_ms):.2f} (x {result.ratio:.1f}) "
        f"| {result.errors} | +{result.grown_mib:.1f} MiB | {result.closed.total()}: {how}{after} | {verdict} |\n"
    )
