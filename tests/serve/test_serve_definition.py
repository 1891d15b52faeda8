"""Deployments, options and graphs as data; nothing runs here."""

import json
import pickle
import subprocess
import sys
import warnings

import pytest

from actorserve import serve
from actorserve.serve.config import AutoscalingConfig, gRPCOptions
from actorserve.serve.dag import InputNode
from actorserve.serve.drivers import DefaultgRPCDriver, gRPCIngress
from actorserve.serve.exceptions import GraphError, OptionError
from actorserve.serve.graph import CallRef, HandleRef, InputRef, build


@serve.deployment
class Leaf:
    def __init__(self, price=1):
        self.price = price

    def check(self, amount):
        return self.price * amount


@serve.deployment(name="market", max_ongoing_requests=7)
class Market:
    def __init__(self, *stands, more=None):
        self.stands = stands
        self.more = more

    def __call__(self, request):
        return request


@serve.deployment
def combine(left, right):
    return left + right


def test_importing_it_loads_little():
    """`import actorserve.serve` brings in neither trio, nor gRPC, nor pydantic, nor cloudpickle, nor protobuf."""
    code = "import sys, actorserve.serve; print(*(n for n in sys.modules if '.' not in n))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    banned = {"trio", "anyio", "grpclib", "grpc", "pydantic", "structlog", "cloudpickle", "google", "torch", "numpy"}
    assert set(loaded) & banned == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_replica": 2}, "num_replica: unknown option; did you mean num_replicas?"),
        ({"num_replicas": 0}, "num_replicas: 0 is wrong: it must be a whole number from 1 to 1024"),
        ({"num_replicas": True}, "num_replicas: True is wrong"),
        ({"max_ongoing_requests": 0}, "max_ongoing_requests: 0 is wrong"),
        ({"max_queued_requests": 0}, "max_queued_requests: 0 is wrong"),
        ({"user_config": {1, 2}}, "user_config: it must be what JSON can hold"),
        ({"health_check_period_s": 0}, "health_check_period_s: 0 is wrong: it must be a number that is above 0"),
        ({"graceful_shutdown_timeout_s": -1}, "graceful_shutdown_timeout_s: -1 is wrong"),
        ({"device": 3}, "device: 3 is wrong"),
        ({"name": "a/b"}, "name: 'a/b' is no name"),
        ({"is_driver_deployment": "yes"}, "is_driver_deployment: 'yes' is wrong"),
        ({"ray_actor_options": {"num_gpu": 1}}, "ray_actor_options.num_gpu: unknown"),
        ({"autoscaling_config": {"min_replica": 1}}, "autoscaling_config.min_replica: unknown"),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}, "autoscaling_config.max_replicas: 2 is less"),
        ({"num_replicas": 2, "autoscaling_config": {}}, "num_replicas: a number and autoscaling_config exclude"),
    ],
)
def test_wrong_options(options, said):
    """A wrong option is an error that names it, from the decorator and from `.options` alike."""
    for make in (serve.deployment, Leaf.options):
        with pytest.raises(OptionError) as caught:
            make(**options)
        assert str(caught.value).startswith(said)


def test_options():
    """`.options` gives another deployment and leaves the first alone; `auto` scales between 1 and 100 replicas."""
    other = Leaf.options(num_replicas="auto", max_concurrent_queries=9, user_config={"price": 2})
    data = other.settings.data()
    assert (data["num_replicas"], data["autoscaling_config"]["max_replicas"]) == (1, 100)
    assert (data["max_ongoing_requests"], data["user_config"]) == (9, {"price": 2})
    assert Leaf.settings.data()["autoscaling_config"] is None
    fixed = other.options(num_replicas=3).settings.data()
    assert (fixed["num_replicas"], fixed["autoscaling_config"]) == (3, None)


def test_an_option_that_means_nothing_here_warns():
    """Ray's options of HTTP and of its cluster are taken, and say so by name."""
    with pytest.warns(UserWarning, match="option route_prefix means nothing here"):
        serve.deployment(route_prefix="/x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        serve.deployment(route_prefix=None)


def test_devices():
    """A replica has a GPU where Ray's num_gpus or `device` asks for one, and the CPU otherwise."""
    assert Leaf.settings.data()["device"] == "cpu"
    assert Leaf.options(ray_actor_options={"num_gpus": 0.5}).settings.data()["device"] == "auto"
    assert Leaf.options(device=["cuda:0", "cuda:1"]).settings.data()["device"] == ["cuda:0", "cuda:1"]


def test_auto_with_more():
    """With num_replicas="auto" there may be a hundred replicas where autoscaling_config does not say otherwise."""
    data = Leaf.options(num_replicas="auto", autoscaling_config={"target_ongoing_requests": 7}).settings.data()
    scaling = data["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (1, 100, 7)
    data = Leaf.options(num_replicas="auto", autoscaling_config={"max_replicas": 3}).settings.data()
    assert data["autoscaling_config"]["max_replicas"] == 3


def test_autoscaling_config_of_an_earlier_ray():
    """The names of earlier versions mean today's."""
    config = AutoscalingConfig.of({"target_num_ongoing_requests_per_replica": 3, "max_replicas": 4})
    assert (config.target_ongoing_requests, config.max_replicas) == (3, 4)
    config = AutoscalingConfig.of({"smoothing_factor": 0.5, "upscaling_factor": 2, "max_replicas": 4})
    assert (config.upscaling_factor, config.downscaling_factor) == (2, 0.5)
    assert AutoscalingConfig.of({"downscale_smoothing_factor": 0.1}).downscaling_factor == 0.1
    assert gRPCOptions.of({"port": 9001}).grpc_servicer_functions == []
    assert gRPCOptions().max_receive_bytes == gRPCOptions().max_send_bytes == 1 << 29
    for key in ("max_receive_bytes", "max_send_bytes"):
        with pytest.raises(OptionError, match=rf"grpc_options\.{key}"):
            gRPCOptions(**{key: 0})
    with pytest.raises(OptionError, match=r"grpc_options\.ports: unknown"):
        gRPCOptions.of({"ports": 1})


def test_graph():
    """Bound deployments inside arguments, nested ones too, become references; each is there once, leaves first."""
    leaf = Leaf.bind(price=3)
    built = build(Market.bind(leaf, [Leaf.bind(4), {"again": leaf}], more=(leaf, "text")))
    assert [node.name for node in built.nodes] == ["Leaf", "Leaf_1", "market"]
    market = built.node("market")
    assert market.args == (HandleRef("Leaf"), [HandleRef("Leaf_1"), {"again": HandleRef("Leaf")}])
    assert market.kwargs == {"more": (HandleRef("Leaf"), "text")}
    assert (built.ingress, built.legacy) == ("market", False)


def test_graph_as_data():
    """What the server reads is JSON; the blob holds every deployment apart, and comes back as it was."""
    built = build(Market.bind(Leaf.bind(price=3)))
    data = json.loads(json.dumps(built.data()))
    assert [one["name"] for one in data["deployments"]] == ["Leaf", "market"]
    assert data["deployments"][1]["options"]["max_ongoing_requests"] == 7
    assert len({one["digest"] for one in data["deployments"]}) == 2
    target, args, kwargs = pickle.loads(pickle.loads(built.blob)["Leaf"])  # noqa: S301  # made above
    assert target(*args, **kwargs).check(2) == 6


def test_a_graph_under_a_driver():
    """`method.bind(input)` is a call in the driver's arguments; functions are called by the graph themselves."""
    leaf = Leaf.bind(price=2)
    with InputNode() as given:
        dag = combine.bind(leaf.check.bind(given["amount"]), leaf.check.bind(given))
    built = build(DefaultgRPCDriver.bind(dag, port=9123))
    driver = built.node("DefaultgRPCDriver")
    part = CallRef("Leaf", "check", (InputRef((("item", "amount"),)),), {})
    assert driver.args == (CallRef("combine", "__call__", (part, CallRef("Leaf", "check", (InputRef(),), {})), {}),)
    assert built.legacy
    assert [one["port"] for one in built.data()["deployments"]] == [None, None, 9123]
    assert {one["name"] for one in built.data()["deployments"]} == {"Leaf", "combine", "DefaultgRPCDriver"}


def test_ports_of_drivers():
    """A driver's port is what it was bound with, what its constructor has by default, or 9000."""

    class Mine(gRPCIngress):
        def __init__(self, size, port=9050):
            super().__init__(port)
            self.size = size

    assert Mine.grpc_port_of((1,), {}) == 9050
    assert Mine.grpc_port_of((1, 7), {}) == 7
    assert gRPCIngress.grpc_port_of((), {}) == 9000


def test_batched_methods_are_known():
    """What a deployment's batches can use at once is in the data, for the size of its hand."""

    @serve.deployment
    class Batched:
        @serve.batch(max_batch_size=16, max_concurrent_batches=2)
        async def many(self, items):
            return items

    assert build(Batched.bind()).data()["deployments"][0]["batch_limit"] == 32
    assert build(Leaf.bind()).data()["deployments"][0]["batch_limit"] == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: build(Leaf), "deployment Leaf is not bound"),
        (lambda: build(3), "3 is no application"),
        (lambda: build(Market.bind(Leaf)), "deployment Leaf is an argument but not bound"),
        (Leaf, "deployment Leaf is not called itself"),
    ],
)
def test_what_is_no_graph(make, said):
    """What cannot be an application says why."""
    with pytest.raises(GraphError) as caught:
        make()
    assert str(caught.value).startswith(said)


def test_wrong_arguments():
    """`bind` checks the constructor's arguments at once; a method that is not there has no attribute."""
    with pytest.raises(TypeError, match=r"Leaf\.bind: got an unexpected keyword argument 'prize'"):
        Leaf.bind(prize=1)
    with pytest.raises(AttributeError, match="deployment Leaf has no method 'chek'"):
        Leaf.bind().chek  # noqa: B018  # the attribute itself is the test
