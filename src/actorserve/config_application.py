"""`[applications.NAME]`: an application built in Python, by the module that binds it (docs/applications.md).

What must not live here: importing it; the options of its deployments are checked where it is imported, in a worker.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, field_validator

from actorserve.config_types import Folders, Table, Texts, is_variable


class Application(Table):
    """An application: a graph of deployments."""

    import_path: str = Field(
        description="`module:name` of what a deployment's `.bind(...)` gave, or of a function that gives it."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Handed to that function, where it takes any.")
    deployments: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Options of deployments, which win over the decorator's: "
        "`deployments.FruitMarket = { num_replicas = 2 }`.",
    )
    path: Folders = Field(default=(), description="Folders added to the replicas' `sys.path`.")
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the replicas.")
    pass_env: Texts = Field(
        default=(), description="Names of the server's environment variables that the replicas see too."
    )

    @field_validator("import_path")
    @classmethod
    def _is_path(cls, value: str) -> str:
        module, _, name = value.partition(":") if ":" in value else value.rpartition(".")
        if not module or not name or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            raise ValueError(f'{value!r} is not "module:name", for example "fruit.app:app"')
        return value

    @field_validator("args", "deployments")
    @classmethod
    def _travels(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                "it cannot be handed to a worker; text, numbers, true, false, lists and tables can"
            ) from None
        return value

    @field_validator("env", "pass_env")
    @classmethod
    def _are_variables(cls, value: Any) -> Any:
        for name in value:
            if not is_variable(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return value
