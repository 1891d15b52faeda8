"""Cases of calls that meet others, wait, are cancelled or call further; and of applications that change. Data only."""

from __future__ import annotations

from ray_steps import Scenario, Step, chat, given, many, one, seen, stream, told

WORDS = (("words", "words"),)
HELD = one("held", "wait {folder}/held;say held")


def _model(model: str) -> dict[str, tuple[tuple[str, str | bytes], ...]]:
    return given(("multiplexed_model_id", model))


CANCELS = Scenario(
    "cancels",
    WORDS,
    (
        one("unary", "mark A;wait {folder}/a", cancel_when="{folder}/a"),
        seen("unary seen", "A", "CancelledError"),
        one(
            "plain", "mark B;wait {folder}/b;mark plain went on", rpc="Main/Plain", cancel_when="{folder}/b", opens=True
        ),
        seen("plain seen", "B", "plain went on"),
        stream("stream at two", "mark C;say a;say b;wait {folder}/c;say c", cancel_after=2),
        seen("stream seen", "C", "CancelledError"),
        one("deadline", "mark D;wait {folder}/d", deadline_s=0.7),
        seen("deadline seen", "D", "CancelledError"),
        stream("deadline of a stream", "mark E;say a;wait {folder}/e", deadline_s=0.7),
        seen("deadline of a stream seen", "E", "CancelledError"),
        one("cancelled with an id", "wait {folder}/i", cancel_when="{folder}/i", **given(("request_id", "mine"))),
        one("after them", "say well"),
    ),
    fresh=True,
)
CANCELLED_MESSAGES = Scenario(
    "cancelled messages",
    WORDS,
    (
        many("messages", "mark A;wait {folder}/f", cancel_when="{folder}/f"),
        seen("messages seen", "A", "collect"),
        many("messages left open", "mark B;wait {folder}/g", closes=False, cancel_when="{folder}/g"),
        seen("messages left open seen", "B", "collect"),
        many("deadline", "mark C", closes=False, deadline_s=1.0),
        seen("deadline seen", "C", "collect"),
        one("after them", "say well"),
    ),
    fresh=True,
)
CANCELLED_CHATS = Scenario(
    "cancelled conversations",
    WORDS,
    (
        chat("at one", "mark A;say a", "say b", cancel_after=1),
        seen("at one seen", "A", "chat"),
        chat("left open", "mark B;say a", closes=False, deadline_s=1.0),
        seen("left open seen", "B", "chat"),
        chat("at work", "mark C;say a;wait {folder}/c", lockstep=False, cancel_when="{folder}/c"),
        seen("at work seen", "C", "chat"),
        one("after them", "say well"),
    ),
    fresh=True,
)
NARROW = Scenario(
    "back-pressure",
    (("narrow", "narrow"),),
    (
        one("one in the queue", "say a", held=(HELD,), opens_after=1),
        one("four at once", "say a", copies=4, held=(HELD,), opens_after=3),
        stream("four streams at once", "say a", copies=4, held=(HELD,), opens_after=3),
        many("four of messages at once", "say a", copies=4, held=(HELD,), opens_after=3),
        one("four with an id", "say a", copies=4, held=(HELD,), opens_after=3, **given(("request_id", "mine"))),
        one("deadline in the queue", "mark never", held=(HELD,), deadline_s=0.5),
        seen("deadline in the queue seen"),
        one("after them", "say well"),
    ),
    fresh=True,
)
BATCHES = Scenario(
    "batches",
    (("batched", "batched"),),
    (
        one("alone", "a"),
        one("four", "a", together=tuple(one("", word) for word in "bcd")),
        one("one raises for all", "all", together=tuple(one("", word) for word in "bcd")),
        one("an exception in a slot", "slot", together=tuple(one("", word) for word in "bcd")),
        one("one answer too few", "short", together=tuple(one("", word) for word in "bcd")),
        stream("two streams", "a", together=(stream("", "b"),)),
        stream("one stops", "stop", together=(stream("", "b"),)),
        stream("one breaks", "break", together=(stream("", "b"),)),
        one("split by model", "a", copies=2, together=(one("", "b", **_model("m")), one("", "b", **_model("m")))),
        one("after them", "a"),
    ),
)
MULTIPLEXING = Scenario(
    "multiplexing",
    (("models", "models"),),
    (
        one("first", "x", **_model("m1")),
        one("first again", "x", **_model("m1")),
        one("second", "x", **_model("m2")),
        one("third, the first goes", "x", **_model("m3")),
        one("first once more", "x", **_model("m1")),
        one("no id", "x"),
        one("empty id", "x", **_model("")),
        one("id in the call", "m9", rpc="Main/Bare"),
        one("cannot be loaded", "x", **_model("bad")),
        one("cannot be loaded again", "x", **_model("bad")),
        one("four of one at once", "x", copies=4, **_model("m7")),
        one("loads", "x", rpc="Main/Plain"),
    ),
    fresh=True,
)
GRAPH_WORDS = [
    "call x",
    "method x",
    "keyword x",
    "plainly x",
    "function 21",
    "options x",
    "chain x",
    "chainkeyword x",
    "nested x",
    "gather 5",
    "twice x",
    "types",
    "streamed 3",
    "unstreamed 3",
    "overstreamed x",
    "fail broken",
    "chainfail broken",
    "caught broken",
    "absent x",
    "unpicklable",
    "misfit",
    "model m1",
    "inherited",
    "where",
]
GRAPH = Scenario(
    "composition",
    (("front", "front"),),
    (
        *(one(word, word, deadline_s=15 if word == "unpicklable" else None) for word in GRAPH_WORDS),
        one("inherited with a model", "inherited", **_model("m1")),
        one("result in a plain def", "x", rpc="Main/Plain"),
        one("plain def that fails inside", "x", rpc="Main/Lacking"),
        stream("stream", "count 3"),
        stream("stream of a plain generator", "plainly 3"),
        stream("stream that fails", "fail 2"),
        one("cancel of a response", "cancel {folder}/a"),
        one("impatient", "impatient {folder}/b"),
        one("cancelled by the client", "hold {folder}/c", cancel_when="{folder}/c"),
        one("cancelled by the client seen", "look", until="CancelledError"),
        one("deadline of the client", "hold {folder}/d", deadline_s=0.7),
        one("full", "full {folder}/e", opens_after=9),
        one("after them", "call x"),
    ),
    fresh=True,
)
RECONFIGURED = Scenario(
    "reconfigured",
    (),
    (
        told("run", "run", name="configured", app="configured", config={"text": "one"}),
        one("first"),
        told("run again", "run", name="configured", app="configured", config={"text": "two"}),
        one("second", until="two"),
        told("run with the same", "run", name="configured", app="configured", config={"text": "two"}),
        one("the same"),
        told("run with a bad one", "run", name="configured", app="configured", config={"text": "bad"}),
        one("after the bad one"),
        told("status after the bad one", "status"),
    ),
)
BROKEN = Scenario(
    "broken",
    (),
    (
        told("run", "run", name="broken", app="broken"),
        told("status", "status"),
        one("call"),
        stream("stream", "say a"),
        Step("list", "/ray.serve.RayServeAPIService/ListApplications", raw=b""),
        Step("healthz", "/ray.serve.RayServeAPIService/Healthz", raw=b""),
        told("delete", "delete", name="broken"),
        told("delete what is not there", "delete", name="nobody"),
    ),
)
DEATH = Scenario(
    "death",
    (("mortal", "mortal"),),
    (
        one("exits", "exit", **given(("request_id", "mine"))),
        one("after it", "say well", until="well"),
        stream("exits in a stream", "say a;exit"),
        one("after the stream", "say well", until="well"),
    ),
    fresh=True,
)
LIMIT_S = 1.5
TIMEOUTS = Scenario(
    "timeouts",
    WORDS,
    (
        one("unary", "wait {folder}/a"),
        one("unary with an id", "wait {folder}/b", **given(("request_id", "mine"))),
        one("unary with a code and trailers", "code ABORTED;details no;trailers a 1;wait {folder}/c"),
        one("quick", "say a"),
        one("plain", "wait {folder}/d", rpc="Main/Plain", opens=True),
        stream("stream", "say a;say b;wait {folder}/e"),
        stream("stream with an id", "say a;wait {folder}/f", **given(("request_id", "mine"))),
        stream("stream without items", "wait {folder}/g"),
        stream("stream that is slow in all", "say a;sleep 0.9;say b;sleep 0.9;say c"),
        many("messages", "say a", "wait {folder}/h"),
        many("messages left open", "say a", closes=False),
        chat("conversation", "say a", "wait {folder}/i"),
        chat("conversation left open", "say a", closes=False),
        one("the client's is shorter", "wait {folder}/j", deadline_s=0.7),
        one("own TimeoutError", "raise TimeoutError broken"),
        seen("what is seen"),
    ),
    timeout_s=LIMIT_S,
    fresh=True,
)
SCENARIOS = (
    CANCELS,
    CANCELLED_MESSAGES,
    CANCELLED_CHATS,
    NARROW,
    BATCHES,
    MULTIPLEXING,
    GRAPH,
    RECONFIGURED,
    BROKEN,
    DEATH,
    TIMEOUTS,
)
