"""What a request claims of a mailbox: its priority, its tenant, its weight; read from the message, purely.

The metadata is the caller's word, so a wrong value is his fault and named. What must not live here: what is done
with a claim (order.py, turns.py, batching.py), and who may claim how much (services/access.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from actorserve.actors.messages import Call, Describe, Generate, Infer, ModelSpec, OpenSequence
from actorserve.errors import BadInput, TooLarge

PRIORITY = "priority"
LOWEST, HIGHEST = 0, 9
FROM_METADATA = "metadata:"
LONGEST_NUMBER = 18


Message = Infer | Generate | OpenSequence | Describe | Call


@dataclass(frozen=True, slots=True)
class Claims:
    """Which claims count for a model. `weight`: `count`, `bytes` or `metadata:KEY`; `max_weight` of a batch, 0: none.

    `tenant_key`: the metadata key that names the tenant; empty: all are one.
    """

    tenant_key: str = ""
    weight: str = "count"
    max_weight: int = 0

    def read(self, message: Message) -> tuple[Hashable, int]:
        """Who asks (those who do not say are one tenant), and what it weighs.

        BadInput where the weight is missing or wrong, TooLarge where it is above the limit of a batch.
        """
        tenant = message.metadata.get(self.tenant_key, "") if self.tenant_key else ""
        return tenant, self._weigh(message)

    def read_leniently(self, message: Message) -> tuple[Hashable, int]:
        """As `read`, of one that was let in under other rules: 1 for a weight that is missing, the limit for more."""
        try:
            return self.read(message)
        except TooLarge:
            weight = self.max_weight
        except BadInput:
            weight = 1
        tenant = message.metadata.get(self.tenant_key, "") if self.tenant_key else ""
        return tenant, weight

    def _weigh(self, message: Message) -> int:
        if self.weight == "count" or isinstance(message, OpenSequence | Describe):  # these go through no forward
            return 1
        if self.weight == "bytes":
            what, unit = "the request", "bytes"
            weight = sum(map(len, message.inputs.values()))
        else:
            key = self.weight.removeprefix(FROM_METADATA)
            what, unit = f"the request's weight ({key})", "units"
            weight = _number(message.metadata, key)
        if weight > self.max_weight:
            raise TooLarge(what, weight, self.max_weight, unit)
        return weight


def claims_of(spec: ModelSpec) -> Claims:
    """What a model's config says. With `count`, `max_batch_weight` is the worker's business alone."""
    return Claims(spec.tenant_key, spec.weight, spec.max_batch_weight if spec.weight != "count" else 0)


def priority_of(metadata: Mapping[str, str | bytes]) -> int:
    """The priority that a call's metadata asks for, 0 to 9; 9 is first, 0 where it says nothing."""
    if PRIORITY not in metadata:
        return LOWEST
    value = metadata[PRIORITY]
    if isinstance(value, str) and len(value) == 1 and value.isascii() and value.isdecimal():
        return int(value)
    raise BadInput(PRIORITY, f"the metadata is {value!r}; it must be one digit, {LOWEST} to {HIGHEST}")


def _number(metadata: Mapping[str, str | bytes], key: str) -> int:
    value = metadata.get(key)
    if value is None:
        raise BadInput(key, "this metadata is missing; it must say the request's weight, as a whole number")
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= LONGEST_NUMBER:
        return int(value)
    raise BadInput(key, f"the metadata is {value!r}; it must be the request's weight, a whole number of at least 0")
