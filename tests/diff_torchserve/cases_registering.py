"""Cases of RegisterModel: names and places, archives, downloads, what cannot load. Data only."""

from __future__ import annotations

from cases_management import describe, scale, unregister
from steps import Scenario, Step, await_ready, predict, register

REGISTERS = Scenario(
    "registers",
    (
        register("rows.mar", step="by name"),
        register("rows.mar", step="twice"),
        register("rows.mar", "rows", step="twice by model_name"),
        register("rows2.mar", "rows", step="second version"),
        register("rows2.mar", "rows", step="second version twice"),
        register("rows.mar", "other", step="under another name", workers=0),
        register("", step="empty url"),
        register("", "named", step="empty url and a name"),
        register("missing.mar", step="missing"),
        register("missing", step="missing without suffix"),
        register("../store/rows.mar", step="dots"),
        register("..", step="two dots"),
        register("a/../../rows.mar", step="dots inside"),
        register("/etc/passwd", step="absolute outside"),
        register("{store}/rows.mar", "absolute", step="absolute inside", workers=0),
        register("sub/deep.mar", "deep", step="a path inside", workers=0),
        register("sub", "folder", step="a folder without a model", workers=0),
        register("rows.mar ", "space", step="trailing space", workers=0),
        register("readme.txt", step="a text file", workers=0),
        register("readme.txt", "text", step="a text file with a name", workers=0),
        register("http://{web}/other/rows.mar", step="not allowed"),
        register("https://example.invalid/rows.mar", step="not allowed https"),
        register("ftp://example.invalid/rows.mar", step="ftp"),
        register("s3://bucket/rows.mar", step="s3"),
        register("http://{web}/allowed/../rows.mar", step="dots in an URL"),
        register("rows.mar", "perl", step="bad runtime", runtime="perl"),
        register("rows.mar", "upper", step="runtime in capitals", runtime="PYTHON"),
        register("rows.mar", "python3", step="runtime python3", runtime="python3", workers=0),
        register("rows.mar", "python", step="runtime python", runtime="python", workers=0),
        register("rows.mar", "lsp", step="runtime LSP", runtime="LSP", workers=0),
        register("rows.mar", "none", step="no workers", workers=0),
        register("rows.mar", "none-async", step="no workers, asynchronous", workers=0, synchronous=False),
        register("rows.mar", "async", step="asynchronous", synchronous=False),
        await_ready("async"),
        describe("asynchronous described", "async"),
        predict("asynchronous asked", b"echo yes", "async"),
        register("rows.mar", "two", step="two workers", workers=2),
        register("rows.mar", "negative", step="negative workers", workers=-1),
        register("rows.mar", "kms", step="s3_sse_kms", s3_sse_kms=True, workers=0),
        register("rows.mar", "handled", step="handler given", handler="handler.py", workers=0),
        register("rows.mar", "odd name/ü", step="odd name", workers=0),
        describe("odd name described", "odd name/ü"),
        Step("bytes that are no message", "RegisterModel", raw=b"\xff\xff"),
    ),
)
KINDS = Scenario(
    "archives",
    (
        register("rowstgz.tar.gz", step="tar.gz"),
        predict("tar.gz asked", b"echo yes", "rowstgz"),
        register("rowsdir", step="folder"),
        predict("folder asked", b"echo yes", "rowsdir"),
        register("rowsstored.mar", step="stored zip", workers=0),
        *(
            step
            for name in ("garbage.mar", "empty.mar", "truncated.mar", "garbage.tar.gz", "nomanifest.mar",
                         "badmanifest.mar", "listmanifest.mar", "emptymanifest.mar", "wrongmanifest.mar",
                         "nohandler.mar", "nofile.mar", "noversion.mar", "badruntime.mar", "lostyaml.mar",
                         "climbs.mar", "climbs.tar.gz")
            for step in (
                register(name, step=name, workers=0),
                register(name, "named-" + name.replace(".", "-"), step=f"{name} with a name", workers=0),
            )
        ),
        *(
            step
            for name in ("brokenyaml", "wrongyaml", "textyaml")
            for step in (register(f"{name}.mar", step=name), describe(f"{name} described", name))
        ),
        describe("lostyaml described", "settings"),
    ),
)  # fmt: skip
DOWNLOADS = Scenario(
    "downloads",
    (
        register("http://{web}/allowed/new-rows.mar", "fetched", step="allowed"),
        predict("allowed asked", b"echo yes", "fetched"),
        describe("allowed described", "fetched"),
        register("http://{web}/allowed/missing.mar", "absent", step="allowed and missing"),
        register("http://{web}/allowed/rows.mar", "there", step="target exists"),
        register("http://127.0.0.1:9/allowed/refused.mar", "refused", step="not allowed port"),
        register("http://{web}/other/rows.mar", "elsewhere", step="not allowed"),
        register("http://{web}/allowed/away/new-rows2.mar", "away", step="redirect to what is not allowed"),
        register("HTTP://{web}/ALLOWED/missing.mar", "capitals", step="capitals"),
        register("file://{store}/rows.mar", "inside", step="file URL inside the store"),
        register("file:///etc/no-such.mar", "outside", step="file URL that is missing"),
        unregister("fetched unregistered", "fetched"),
        register("new-rows.mar", "kept", step="the file of an unregistered model", workers=0),
    ),
)
LOADING = Scenario(
    "loading",
    (
        register("brokenimport.mar", step="import that is missing", startup_timeout=15),
        register("brokensyntax.mar", step="syntax error", startup_timeout=15),
        register("twoclasses.mar", step="two classes", startup_timeout=15),
        register("noclass.mar", step="no class", startup_timeout=15),
        register("nofile.mar", "nofile", step="file is missing", startup_timeout=15),
        register("rows.mar", "load-scale", step="registered without workers", workers=0, startup_timeout=15),
        scale("scale that cannot load", "load-scale", min_worker=1),
        scale("scale of a version that cannot load", "load-scale", model_version="1.0", min_worker=1),
        describe("what could not be scaled", "load-scale"),
        register("rows.mar", "load-runtime", step="RuntimeError", startup_timeout=15),
        describe("RuntimeError described", "load-runtime"),
        register("rows.mar", "load-value", step="ValueError", startup_timeout=15),
        describe("ValueError described", "load-value"),
        register("rows.mar", "load-memory", step="MemoryError", startup_timeout=15),
        register("rows.mar", "load-cuda", step="CUDA", startup_timeout=15),
        register("rows.mar", "load-exit", step="exit", startup_timeout=15),
        register("rows.mar", "load-slow", step="start-up timeout", startup_timeout=2),
        Step("ping", "Ping"),
    ),
)
SCENARIOS = (REGISTERS, KINDS, DOWNLOADS)
LAST = (LOADING,)
