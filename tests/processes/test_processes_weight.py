"""A handler's `weight` with the config's `max_batch_weight`, in a real worker, seen by a client."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from serving import HERE, Serving

MODEL = f"""
[models.m]
handler = "handlers_that_weigh:Weighing"
path = ["{HERE}"]
batch_size = 8
max_batch_weight = 10
"""


def test_forwards_weigh_at_most_the_limit(tmp_path: Path) -> None:
    """What queued together goes in forwards of at most the limit, lightest first; who is above it fails alone."""
    serving = Serving(tmp_path, MODEL)
    try:
        assert serving.ask("m", "x") == ["x"]
        slow = serving.ask_later("m", "slow")
        good = [serving.ask_later("m", "y" * length) for length in (9, 3, 4, 5)]
        heavy = serving.ask_later("m", "z" * 11)

        forwards = [json.loads(one.result().prediction) for one in good]

        assert all(sum(map(len, forward)) <= 10 for forward in forwards)
        assert all(forward == sorted(forward, key=len) for forward in forwards)
        assert slow.result()
        with pytest.raises(grpc.RpcError) as refused:
            heavy.result()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "of 11 units" in refused.value.details()
        assert "limit of 10 units" in refused.value.details()
    finally:
        serving.close()
