"""Cases of a server with tokens on and the model API off. Data only.

Both servers come with the model `rows`, version 1.0.
"""

from __future__ import annotations

from steps import Scenario, Step

BEARERS = {
    "none": (),
    "right": (("authorization", "Bearer {own}"),),
    "wrong": (("authorization", "Bearer nonsense"),),
    "the other's": (("authorization", "Bearer {other}"),),
    "empty": (("authorization", ""),),
    "no token": (("authorization", "Bearer"),),
    "no scheme": (("authorization", "{own}"),),
    "lower case": (("authorization", "bearer {own}"),),
    "basic": (("authorization", "Basic {own}"),),
    "two spaces": (("authorization", "Bearer  {own}"),),
    "trailing": (("authorization", "Bearer {own} x"),),
    "other key": (("token", "Bearer {own}"),),
}
OWN = {"Ping": ("{inference}", "{management}"), "ListModels": ("{management}", "{inference}")}


def _with(rpc: str, own: str, other: str) -> tuple[Step, ...]:
    """A call with every kind of token."""
    fields = {"limit": 10} if rpc == "ListModels" else {}
    return tuple(
        Step(f"{rpc} {name}", rpc, fields,
             metadata=tuple((key, value.replace("{own}", own).replace("{other}", other)) for key, value in metadata))
        for name, metadata in BEARERS.items()
    )  # fmt: skip


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {{{key}}}"),)


ROWS = {"model_name": "nobody", "input": {"data": b"echo hello"}}
LOADED = {"model_name": "rows", "input": {"data": b"about"}}
TOKENS = Scenario(
    "tokens",
    (
        *_with("Ping", *OWN["Ping"]),
        *_with("ListModels", *OWN["ListModels"]),
        Step("Predictions none", "Predictions", ROWS),
        Step("Predictions right", "Predictions", ROWS, metadata=_bearer("inference")),
        Step("StreamPredictions none", "StreamPredictions", ROWS),
        Step("StreamPredictions right", "StreamPredictions", ROWS, metadata=_bearer("inference")),
        Step("StreamPredictions2 none", "StreamPredictions2", messages=({**ROWS, "sequence_id": "one"},), patience_s=8),
        Step("RegisterModel none", "RegisterModel", {"url": "rows.mar"}),
        Step("RegisterModel right", "RegisterModel", {"url": "rows.mar"}, metadata=_bearer("management")),
        Step("RegisterModel without a url", "RegisterModel", {}, metadata=_bearer("management")),
        Step("UnregisterModel none", "UnregisterModel", {"model_name": "rows"}),
        Step("UnregisterModel right", "UnregisterModel", {"model_name": "rows"}, metadata=_bearer("management")),
        Step("UnregisterModel of nobody", "UnregisterModel", {"model_name": "nobody"}, metadata=_bearer("management")),
        Step("DescribeModel none", "DescribeModel", {"model_name": "nobody"}),
        Step("DescribeModel right", "DescribeModel", {"model_name": "nobody"}, metadata=_bearer("management")),
        Step("await", "DescribeModel", {"model_name": "rows"}, ready=1, metadata=_bearer("management"), compared=False),
        Step("loaded described", "DescribeModel", {"model_name": "rows"}, metadata=_bearer("management")),
        Step("loaded asked", "Predictions", LOADED, metadata=_bearer("inference")),
        Step("ScaleWorker none", "ScaleWorker", {"model_name": "nobody", "min_worker": 1}),
        Step("ScaleWorker right", "ScaleWorker", {"model_name": "nobody"}, metadata=_bearer("management")),
        Step("SetDefault none", "SetDefault", {"model_name": "rows", "model_version": "1.0"}),
        Step("SetDefault right", "SetDefault", {"model_name": "rows", "model_version": "1.0"},
             metadata=_bearer("management")),
    ),
    configuration="tokens",
)  # fmt: skip
SCENARIOS = (TOKENS,)
