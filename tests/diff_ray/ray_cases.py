"""All cases, in the order in which they are sent. Data only."""

from __future__ import annotations

import ray_cases_calls
import ray_cases_life
from ray_steps import Scenario

SCENARIOS: tuple[Scenario, ...] = (*ray_cases_calls.SCENARIOS, *ray_cases_life.SCENARIOS)
LIMITS = tuple(dict.fromkeys(scenario.timeout_s for scenario in SCENARIOS))

WITH_DEADLINE = frozenset(
    f"{scenario.name}/{step.name}" for scenario in SCENARIOS for step in scenario.steps if step.deadline_s
)
"""Cases in which the client's own deadline passes."""


def names() -> list[str]:
    """The compared cases' names."""
    return [f"{scenario.name}/{step.name}" for scenario in SCENARIOS for step in scenario.steps if step.compared]
