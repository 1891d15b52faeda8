"""Rules of applications that need no process: which one a call means, Ray's table, options as a model's."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from grpclib.const import Status

from actorserve import errors
from actorserve.actors.applications import MOST_QUEUED, Application, Source, same_replicas, spec_of
from actorserve.actors.autoscaler import policy_of
from actorserve.actors.autoscaling import Policy
from actorserve.serve.definition import deployment
from actorserve.serve.graph import build
from actorserve.services.applications import Board, Taken, choose, named_in
from actorserve.services.ray_compat import said_of, timed_out
from actorserve.services.tokens import Token
from actorserve.services.transport.values import decode_metadata

ONE = {"a": Taken("a", "A", lambda: None)}
TWO = {**ONE, "b": Taken("b", "B", lambda: None)}
PING = "Ping /ray.serve.RayServeAPIService/ListApplications for available applications."


@pytest.mark.parametrize(
    ("taken", "name", "lenient", "expected"),
    [
        (ONE, "", False, "a"),
        (ONE, "a", False, "a"),
        (ONE, "b", False, None),
        (ONE, "b", True, "a"),
        (TWO, "b", False, "b"),
        (TWO, "", False, None),
        (TWO, "", True, None),
        (TWO, "c", True, None),
        ({}, "", True, None),
        ({}, "a", True, None),
    ],
)
def test_which_application(taken, name, lenient, expected):
    """The one that is named; the only one where none is named, or where Ray's proxy is followed."""
    if expected is None:
        with pytest.raises(errors.NoSuchApplication) as caught:
            choose(taken, name, lenient=lenient)
        assert caught.value.name == name
    else:
        assert choose(taken, name, lenient=lenient).name == expected


def test_the_last_name_counts():
    """Given twice, the last `application` counts; an empty one is none."""
    assert named_in(decode_metadata([(b"application", b"a"), (b"application", b"b")])) == "b"
    assert named_in(decode_metadata([(b"application", b"")])) == ""
    assert named_in(decode_metadata([])) == ""


def test_a_token_for_other_applications():
    """A token that names its models names its applications by them: a call for another is not allowed."""
    board = Board()
    board.taken = TWO
    stream = SimpleNamespace(metadata=decode_metadata([(b"application", b"b")]), token=None)
    pick = board.picking(lenient=False)
    assert pick(stream) is None  # what stands for its mailbox here
    stream.token = Token("mine", b"", models=frozenset({"a"}))
    with pytest.raises(errors.NotAllowed, match="the token 'mine' does not allow the model 'b'"):
        pick(stream)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.NoSuchApplication(""), (Status.NOT_FOUND, f"Application metadata not set. {PING}")),
        (errors.NoSuchApplication("x", ["a"]), (Status.NOT_FOUND, f"Application 'x' not found. {PING}")),
        (
            errors.Overloaded("app:A", 7, 1.0),
            (
                Status.RESOURCE_EXHAUSTED,
                "Request dropped due to backpressure (num_queued_requests=7, max_queued_requests=7).",
            ),
        ),
        (errors.Draining("x"), (Status.UNAVAILABLE, "This node is being drained.")),
        (errors.BadInput("a", "b"), None),
        (errors.ActorCrashed("x"), None),
    ],
)
def test_rays_table(error, said):
    """Ray's statuses and texts, and nothing where Ray has no row."""
    assert said_of(error) == said
    assert timed_out(0.5) == "Request timed out after 0.5s."


@deployment(
    num_replicas="auto",
    max_ongoing_requests=3,
    device=["cuda:0"],
    user_config={"a": 1},
    graceful_shutdown_timeout_s=7,
    ray_actor_options={"runtime_env": {"env_vars": {"A": "b"}, "pip": ["x==1"]}},
)
class One:
    pass


def described(*bound, **options):
    return Application.of("app", build(One.options(**options).bind(*bound)).data())


def test_options_become_a_model():
    """Ray's options are the keys of a model: workers, hand, queue, device, environment, health."""
    application = described()
    spec = spec_of(Source("app", Path("/x"), path=("/p",)), application, application.deployments[0], "4")
    assert (spec.name, spec.version, spec.workers_min, spec.workers_max) == ("app:One", "4", 1, 100)
    assert (spec.batch_size, spec.queue_size, spec.devices) == (3, MOST_QUEUED, ("cuda:0",))
    assert (spec.options["user_config"], spec.options["deployment"], spec.options["legacy"]) == ({"a": 1}, "One", False)
    assert (spec.environment.path, spec.environment.env, spec.environment.requirements) == (
        ("/p",),
        {"A": "b"},
        ("x==1",),
    )
    fixed = described(num_replicas=2, max_queued_requests=9).deployments[0]
    spec = spec_of(Source("app", Path("/x")), application, fixed, "1")
    assert (spec.workers_min, spec.workers_max, spec.queue_size) == (2, 2, 9)


def test_autoscaling_config_becomes_a_policy():
    """Every key of autoscaling_config that decides reaches the decision, and Ray's defaults with them."""
    given = {
        "min_replicas": 0,
        "max_replicas": 9,
        "initial_replicas": 3,
        "target_ongoing_requests": 4.0,
        "upscale_delay_s": 1.0,
        "downscale_delay_s": 2.0,
        "downscale_to_zero_delay_s": 3.0,
        "upscaling_factor": 0.5,
        "downscaling_factor": 0.25,
        "look_back_period_s": 5.0,
    }
    spec = spec_for(autoscaling_config=given)
    assert policy_of(spec) == Policy(0, 9, 4.0, 1.0, 2.0, 3.0, 0.5, 0.25, 5.0)
    assert spec.workers_begun == 3
    assert policy_of(spec_for(num_replicas="auto")) == Policy(1, 100, 2.0, 30.0, 600.0, None, 1.0, 1.0, 30.0)


def spec_for(**options):
    application = described(**options)
    return spec_of(Source("app", Path("/x")), application, application.deployments[0], "1")


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({}, True),
        ({"user_config": {"a": 2}}, True),
        ({"num_replicas": 4}, True),
        ({"graceful_shutdown_timeout_s": 1}, True),
        ({"max_ongoing_requests": 4}, False),
        ({"device": "cpu"}, False),
    ],
)
def test_what_changes_in_place(options, stays):
    """How many replicas there are, their user_config and their grace change in place; the rest needs other replicas."""
    assert same_replicas(described().deployments[0], described(**options).deployments[0]) is stays


@pytest.mark.parametrize("said", [{}, {"deployments": [{}]}, {"deployments": [], "ingress": "A"}, {"deployments": 3}])
def test_nonsense(said):
    """What is no application is the sender's fault."""
    with pytest.raises(errors.BadInput):
        Application.of("app", said)
