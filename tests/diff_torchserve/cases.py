"""Every case, in the order in which they are sent: those last that leave TorchServe without a sound worker."""

from __future__ import annotations

import cases_management
import cases_predictions
import cases_registering
import cases_streams
import cases_tokens
from steps import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *cases_predictions.SCENARIOS,
    *cases_management.SCENARIOS,
    *cases_registering.SCENARIOS,
    *cases_streams.SCENARIOS,
    *cases_predictions.LAST,
    *cases_management.LAST,
    *cases_registering.LAST,
    *cases_streams.LAST,
    *cases_tokens.SCENARIOS,
)
CONFIGURATIONS = ("open", "tokens")


def names() -> list[str]:
    """The compared cases' names."""
    return [f"{scenario.name}/{step.name}" for scenario in SCENARIOS for step in scenario.steps if step.compared]
