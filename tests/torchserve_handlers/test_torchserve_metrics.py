"""`context.metrics`, `timed` and the helpers of `ts.utils.util`, as handlers use them."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest


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


YAML = """
dimensions:
  - &model "ModelName"
  - &level "Level"
model_metrics:
  counter:
    - name: Calls
      unit: count
      dimensions: [*model, *level]
  gauge:
    - name: Wait
      unit: ms
      dimensions: []
"""


@pytest.fixture
def defined(ts, tmp_path):
    """A cache of a file with this content."""

    def defined(text):
        (tmp_path / "m.yaml").write_text(text)
        return ts("metrics.metric_cache_yaml_impl").MetricsCacheYamlImpl(tmp_path / "m.yaml")

    return defined


def test_metrics_of_a_file(ts, defined, caplog):
    """What a YAML file defines is there, and takes the values that are added by name."""
    cache = defined(YAML)
    cache.model_name = "mine"
    cache.set_request_ids({0: "a", 1: "b"})
    cache.initialize_cache()
    assert cache.cache_keys() == ["counter:Calls", "gauge:Wait"]
    with caplog.at_level(logging.INFO):
        cache.add_counter("Calls", 2, 0)
        cache.add_counter("Calls", 3)
        cache.get_metric("Wait", ts("metrics.metric_type_enum").MetricTypes.GAUGE).update(1.5)
    assert caplog.messages == [
        "Calls.Count:2|#ModelName:mine,Level:Model",
        "Calls.Count:5|#ModelName:mine,Level:Model",
        "Wait.Milliseconds:1.5|#",
    ]


@pytest.mark.parametrize(
    ("text", "error", "what"),
    [
        ("a: [", "MetricsCachePyYamlError", "is not YAML"),
        ("a: 1", "MetricsCacheKeyError", "no section model_metrics"),
        ("model_metrics:", "MetricsCacheValueError", "model_metrics is empty"),
        ("model_metrics: {sum: []}", "MetricsCacheKeyError", "'sum' is no type of metrics"),
        ("model_metrics: {gauge: [{name: a}]}", "MetricsCacheKeyError", "a gauge has no unit"),
    ],
)
def test_wrong_files_of_metrics(ts, defined, text, error, what):
    """What is wrong with a file is said by the error of its kind."""
    with pytest.raises(getattr(ts("metrics.metric_cache_errors"), error), match=what):
        defined(text).initialize_cache()


def test_missing_file_of_metrics(ts, tmp_path):
    """A file that is not there, and what is no path, are said."""
    kind, errors = ts("metrics.metric_cache_yaml_impl").MetricsCacheYamlImpl, ts("metrics.metric_cache_errors")
    with pytest.raises(errors.MetricsCacheIOError, match="cannot be read"):
        kind(tmp_path / "absent.yaml")
    with pytest.raises(errors.MetricsCacheTypeError, match="not a path"):
        kind(None)


def test_metrics_by_their_dimensions(store):
    """Values of a counter add up for each combination of dimensions by itself; it never falls."""
    metric = store.add_metric_to_cache("Tokens", "count", ["Kind"])
    for kind, value in (("prompt", 5), ("answer", 7), ("prompt", 1)):
        metric.add_or_update(value, [kind])
    assert metric.values == {("answer",): 7, ("prompt",): 6}
    assert str(metric) == "Tokens.Count:6|#Kind:prompt"
    with pytest.raises(ValueError, match="cannot fall"):
        metric.add_or_update(-1, ["prompt"])


def test_metrics_do_not_grow_without_bound(ts, store):
    """Of dimensions that never end, the oldest are forgotten."""
    most = ts("metrics.caching_metric").MOST_VALUES
    metric = store.add_metric_to_cache("Seen", "count", ["Who"])
    for number in range(most + 5):
        metric.add_or_update(1, [str(number)])
    assert len(metric.values) == most
    assert ("4",) not in metric.values


def test_single_metrics(ts, caplog):
    """A Metric is emitted as one line, becomes JSON, and a counter adds up."""
    metric = ts("metrics.metric").Metric(
        "Answers", 1, "count", [ts("metrics.dimension").Dimension("Level", "Model")], "id", "counter"
    )
    metric.update(2)
    with caplog.at_level(logging.INFO):
        ts("service").emit_metrics([metric])
        ts("service").emit_metrics(None)
    assert caplog.messages == ["Answers.Count:3|#Level:Model"]
    said = json.loads(json.dumps([metric], cls=ts("metrics.metric_encoder").MetricEncoder))[0]
    assert (said["MetricName"], said["Value"], said["RequestId"]) == ("Answers", 3, "id")
    assert said["Dimensions"] == [{"Name": "Level", "Value": "Model"}]
    metric.reset()
    assert metric.value == 0


def test_errors_are_counted(store, caplog):
    """An error's level says so."""
    with caplog.at_level(logging.INFO):
        store.add_error("Wrong", 1)
    assert caplog.messages == ["Wrong.unit:1|#Level:Error"]


@pytest.mark.parametrize(
    ("mapping", "text"),
    [({"0": 1}, "label of class '0' is neither"), ({"0": []}, "label of class '0' is neither"), ([], "json format")],
)
def test_wrong_labels(ts, tmp_path, mapping, text):
    """A label that is no text is named."""
    path = tmp_path / "index_to_name.json"
    path.write_text(json.dumps(mapping))
    with pytest.raises(TypeError, match=text):
        ts("utils.util").load_label_mapping(path)


def test_lists_of_labels(ts, tmp_path):
    """Of a list of labels the last counts, as in the mappings of ImageNet."""
    path = tmp_path / "index_to_name.json"
    path.write_text(json.dumps({"0": ["n01440764", "tench"], "1": "goldfish"}))
    assert ts("utils.util").load_label_mapping(path) == {"0": "tench", "1": "goldfish"}
