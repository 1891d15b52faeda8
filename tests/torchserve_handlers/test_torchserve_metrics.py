"""`context.metrics`, `timed` and the helpers of `ts.utils.util`, as handlers use them."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from types import SimpleNamespace

import pytest

from actorserve.handlers.torchserve.entry import SHIM


@pytest.fixture
def ts(monkeypatch):
    """Import a module of our `ts`, which is gone again afterwards."""
    monkeypatch.syspath_prepend(str(SHIM))
    yield lambda name: importlib.import_module(f"ts.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "ts"]:
        del sys.modules[name]


@pytest.fixture
def store(ts):
    return ts("metrics.metrics_store").MetricsStore({}, "mine")


def test_counters_add_up_and_gauges_do_not(ts, store, caplog):
    """A counter is the sum of its values, a gauge the last; each value is a line of the log with its dimensions."""
    kinds = ts("metrics.metric_type_enum").MetricTypes
    dimension = ts("metrics.dimension").Dimension("Size", "large")
    with caplog.at_level(logging.INFO):
        for value in (1, 2):
            store.add_counter("Calls", value, dimensions=[dimension])
            store.add_size("Memory", value, unit="GB")
    assert store.get_metric("Calls").value == 3
    assert store.get_metric("Memory", kinds.GAUGE).value == 2
    assert "Calls.Count:3|#Size:large,ModelName:mine,Level:Model" in caplog.messages
    assert "Memory.Gigabytes:2|#ModelName:mine,Level:Model" in caplog.messages


def test_cached_metric(store):
    """A metric with named dimensions wants a value for each of them."""
    metric = store.add_metric_to_cache("Tokens", "count", ["Kind"])
    metric.add_or_update(5, ["prompt"])
    assert store.get_metric("Tokens").value == 5
    with pytest.raises(ValueError, match="dimensions are"):
        metric.add_or_update(5, [])


@pytest.mark.parametrize(
    ("method", "arguments", "error"),
    [
        ("add_error", ("Wrong", "text"), TypeError),
        ("add_time", ("Time", 1, None, "hours"), ValueError),
        ("add_size", ("Size", 1, None, "ms"), ValueError),
        ("get_metric", ("Absent",), KeyError),
    ],
)
def test_wrong_metrics(store, method, arguments, error):
    """Values must be numbers, units known, and a metric there before it is asked for."""
    with pytest.raises(error):
        getattr(store, method)(*arguments)


@pytest.mark.parametrize("profile", [True, False])
def test_timed(ts, store, profile):
    """A timed method becomes a metric only where `handler.profile` asks for it."""
    context = SimpleNamespace(model_yaml_config={"handler": {"profile": profile}}, metrics=store)

    def inference(self, number):
        return number + 1

    timed = ts("handler_utils.timer").timed(inference)
    assert timed(SimpleNamespace(context=context), 1) == 2
    assert store.cache_keys() == (["gauge:ts_handler_inference"] if profile else [])


def test_labels(ts, tmp_path):
    """Label files of both shapes are read, and probabilities named by them; without one by their number."""
    util = ts("utils.util")
    path = tmp_path / "index_to_name.json"
    assert util.load_label_mapping(path) is None
    path.write_text(json.dumps({"object_type_names": ["cat", "dog"]}))
    mapping = util.load_label_mapping(path)
    assert util.map_class_to_label([[0.75, 0.25]], mapping, [[1, 0]]) == [{"dog": 0.75, "cat": 0.25}]
    assert util.map_class_to_label([[0.75, 0.25]]) == [{"0": 0.75, "1": 0.25}]
    path.write_text("[]")
    with pytest.raises(TypeError, match="json format"):
        util.load_label_mapping(path)


@pytest.mark.parametrize(("size", "parallelism", "text"), [(0, {}, "at least 1"), (1, {"train": 1}, "has 'train'")])
def test_wrong_micro_batches(ts, size, parallelism, text):
    """A size of 0 and an unknown stage are refused when the handler is made."""
    with pytest.raises(ValueError, match=text):
        ts("handler_utils.micro_batching").MicroBatching(object(), size, parallelism)


def test_only_rank_0_sends(ts, monkeypatch):
    """Of a model in several processes the others' intermediate answers go nowhere."""
    sent = []
    send = ts("handler_utils.utils").send_intermediate_predict_response
    context = SimpleNamespace(sink=lambda *what: sent.append(what))
    monkeypatch.setenv("LOCAL_RANK", "1")
    send(["x"], {0: "a"}, "ok", 200, context)
    assert sent == []
    monkeypatch.setenv("LOCAL_RANK", "0")
    send(["x"], {0: "a"}, "ok", 200, context)
    assert sent == [(["x"], {0: "a"}, "ok", 200)]
