"""Cases of the management calls but RegisterModel (cases_registering.py). Data only."""

from __future__ import annotations

from typing import Any

from steps import Scenario, Step, await_ready, manage, predict, register


def describe(name: str, model: str, version: str = "", *, customized: bool = False) -> Step:
    """DescribeModel."""
    return manage(name, "DescribeModel", model_name=model, model_version=version, customized=customized)


def scale(name: str, model: str, **fields: Any) -> Step:
    """ScaleWorker, synchronous unless `fields` say otherwise."""
    return manage(name, "ScaleWorker", **({"model_name": model, "synchronous": True} | fields))


def unregister(name: str, model: str, version: str = "") -> Step:
    """UnregisterModel."""
    return manage(name, "UnregisterModel", model_name=model, model_version=version)


def default(name: str, model: str, version: str = "") -> Step:
    """SetDefault."""
    return manage(name, "SetDefault", model_name=model, model_version=version)


def _page(limit: int, token: int = 0) -> Step:
    return manage(f"limit {limit} from {token}", "ListModels", limit=limit, next_page_token=token)


LISTS = Scenario(
    "lists",
    (
        manage("empty", "ListModels"),
        manage("empty with a limit", "ListModels", limit=10),
        *(register("rows.mar", name, workers=0) for name in ("b", "a", "d", "c")),
        manage("no limit", "ListModels"),
        *(_page(limit) for limit in (1, 3, 4, 5, 100, 101, -1, -100, 2147483647)),
        *(_page(2, token) for token in (1, 2, 3, 4, 5, -1, 100)),
        _page(0, 1),
        register("rows2.mar", "a", step="register a again", workers=0),
        manage("two versions", "ListModels", limit=100),
        Step("bytes that are no message", "ListModels", raw=b"\xff\xff"),
    ),
)
DESCRIBES = Scenario(
    "describes",
    (
        describe("empty server", "rows"),
        register("rows.mar", "rows"),
        describe("default", "rows"),
        describe("version", "rows", "1.0"),
        describe("all", "rows", "all"),
        describe("unknown model", "nobody"),
        describe("unknown model, all", "nobody", "all"),
        describe("unknown version", "rows", "9.9"),
        describe("empty name", ""),
        register("rows2.mar", "rows", step="register version 2.0", workers=0),
        describe("without workers", "rows", "2.0"),
        describe("all of two", "rows", "all"),
        register("rows.mar", "fields", batch_size=5, max_batch_delay=7, response_timeout=11, startup_timeout=13),
        describe("fields of the request", "fields"),
        register("settings.mar"),
        await_ready("settings"),
        describe("fields of the archive", "settings"),
        predict("yaml in the handler", b"about", "settings"),
        register("settings.mar", "both", batch_size=9, max_batch_delay=8, response_timeout=11, startup_timeout=13),
        describe("fields of both", "both"),
        register("scaled.mar"),
        await_ready("scaled", 2),
        describe("workers of the archive", "scaled"),
        register("devices.mar", workers=0),
        describe("devices described", "devices"),
        register("ticket.mar", workers=0),
        describe("ticket described", "ticket"),
        register("sequences.mar"),
        describe("sequences described", "sequences"),
        register("rows.mar", "less", step="negative fields", batch_size=-3, max_batch_delay=-4, response_timeout=-5),
        describe("negative fields described", "less"),
    ),
)  # fmt: skip
CUSTOMIZED = Scenario(
    "customized",
    (
        describe("unknown model", "nobody", customized=True),
        *(
            step
            for model in ("described", "describes-text", "describes-list", "describes-nothing", "describes-badly")
            for step in (register("rows.mar", model), describe(model, model, customized=True))
        ),
        describe("all versions", "described", "all", customized=True),
        describe("of a version", "described", "1.0", customized=True),
        describe("of an unknown version", "described", "9", customized=True),
        predict("alive afterwards", b"echo yes", "describes-badly"),
        register("rows.mar", "workerless", workers=0),
        describe("without workers", "workerless", customized=True),
        register("line.mar"),
        describe("of a BaseHandler", "line", customized=True),
    ),
)
SCALES = Scenario(
    "scales",
    (
        scale("empty server", "rows", min_worker=1),
        register("rows.mar", "rows"),
        scale("unknown model", "nobody", min_worker=1),
        scale("unknown version", "rows", model_version="9", min_worker=1),
        scale("empty name", "", min_worker=1),
        scale("most below least", "rows", min_worker=2, max_worker=1),
        scale("to two", "rows", min_worker=2),
        describe("two described", "rows"),
        scale("to one", "rows", min_worker=1),
        await_ready("rows", 1),
        describe("one described", "rows"),
        scale("nothing given", "rows"),
        scale("with a version", "rows", model_version="1.0", min_worker=1, max_worker=3),
        describe("bounds described", "rows"),
        scale("asynchronous", "rows", min_worker=2, synchronous=False),
        await_ready("rows", 2),
        scale("number_gpu and timeout", "rows", min_worker=1, number_gpu=1, timeout=30),
        scale("negative", "rows", min_worker=-1, max_worker=-1),
        scale("negative most", "rows", min_worker=1, max_worker=-5),
        scale("asynchronous unknown", "nobody", min_worker=1, synchronous=False),
        register("rows.mar", "workerless", workers=0),
        scale("from none", "workerless", min_worker=1),
        predict("from none asked", b"echo yes", "workerless"),
    ),
)
DEFAULTS = Scenario(
    "defaults",
    (
        default("empty server", "rows", "1.0"),
        register("rows.mar", "rows", workers=0),
        register("rows2.mar", "rows", step="register version 2.0", workers=0),
        default("second", "rows", "2.0"),
        describe("second described", "rows"),
        default("same again", "rows", "2.0"),
        default("unknown version", "rows", "9"),
        default("no version", "rows"),
        default("unknown model", "nobody", "1.0"),
        default("unknown model without a version", "nobody"),
        default("empty name", "", "1.0"),
        default("all", "rows", "all"),
    ),
)
UNREGISTERS = Scenario(
    "unregisters",
    (
        unregister("empty server", "rows"),
        unregister("empty name", ""),
        unregister("empty name and version", "", "1.0"),
        register("rows.mar", "rows"),
        register("rows2.mar", "rows", step="register version 2.0", workers=0),
        unregister("unknown version", "rows", "9"),
        unregister("default while others exist", "rows", "1.0"),
        unregister("no version while others exist", "rows"),
        unregister("other version", "rows", "2.0"),
        unregister("other version again", "rows", "2.0"),
        describe("what is left", "rows", "all"),
        unregister("last", "rows"),
        describe("nothing is left", "rows"),
        predict("asked afterwards", b"echo hello"),
        register("rows.mar", "rows", step="registered again"),
        predict("asked again", b"echo hello"),
        unregister("with a version", "rows", "1.0"),
        unregister("again", "rows"),
        unregister("again with a version", "rows", "1.0"),
    ),
)
# Batches of four, so that what waits is no whole batch: a busy worker takes one ahead, and then nothing would wait.
BUSY = Scenario(
    "busy",
    (
        register("rows.mar", "busy", batch_size=4, max_batch_delay=10),
        Step("described", "DescribeModel", {"model_name": "busy"}, behind=3),
        Step("default", "SetDefault", {"model_name": "busy", "model_version": "1.0"}, behind=2),
        Step("scaled", "ScaleWorker", {"model_name": "busy", "min_worker": 2, "synchronous": True}, behind=1),
        register("rows.mar", "ends", batch_size=4, max_batch_delay=10),
        Step("unregistered", "UnregisterModel", {"model_name": "ends"}, behind=2),
        register("rows.mar", "ends", step="registered again"),
        predict("asked again", b"echo yes", "ends"),
    ),
)  # fmt: skip
SCENARIOS = (LISTS, DESCRIBES, CUSTOMIZED, SCALES, DEFAULTS, UNREGISTERS)
LAST = (BUSY,)
