"""Devices: the ledger by its properties, how GPUs are found, and which device a replica gets. No GPU is needed, except
by the tests that are marked so.
"""

# ruff: noqa: SIM300  # expected == actual

import json
import os
import sys
import types

import grpc
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from universe import spec, universe, until

from actorserve import configured, server, testing
from actorserve.actors.device import Gpu, Ledger, find_gpus, free_memory, visible
from actorserve.actors.messages import Placement, Scale, Spawn
from actorserve.errors import ConfigError, LoadFailed
from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest
from actorserve.scripted import ScriptedWorker
from actorserve.services import describe

A, B, C = (Gpu(f"GPU-{letter * 8}-0000-0000-0000-000000000000") for letter in "abc")

# --- the ledger -------------------------------------------------------------------------------------


@given(
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from(["x/1", "y/1"]), st.booleans(), st.integers(0, 9)), max_size=40),
    st.booleans(),
)
def test_the_ledger_adds_up(count, orders, knows_memory):
    """Whatever is assigned and released: each device that is shown has exactly the owners that were given it, nobody
    has a device that does not exist, and a GPU is named by its id.
    """
    gpus = [Gpu(f"GPU-{n}") for n in range(count)]
    ledger = Ledger(gpus, free=lambda: {gpu.id: 1 for gpu in gpus} if knows_memory else {})
    held = []
    for model, gives_back, which in orders:
        if gives_back and held:
            ledger.release(held.pop(which % len(held))[1])
        else:
            held.append((model, ledger.assign(model, ("auto",))))
    assert len({placement for _, placement in held}) == len(held)
    owners = {name: sorted(model for model, one in held if one.device == name) for name in ledger.known}
    assert owners == {name: sorted(models) for name, models in ledger.owners().items()}
    names = {f"cuda:{n}": gpu.id for n, gpu in enumerate(gpus)} or {"cpu": ""}
    assert all(names[placement.device] == placement.visible for _, placement in held)


@given(st.integers(1, 4), st.integers(0, 20), st.lists(st.integers(0, 100), min_size=4, max_size=4))
def test_replicas_are_spread(count, replicas, memory):
    """The replicas of one model are spread evenly over its devices, whatever their memory."""
    gpus = [Gpu(f"GPU-{n}") for n in range(count)]
    ledger = Ledger(gpus, free=lambda: {gpu.id: memory[n] for n, gpu in enumerate(gpus)})
    for _ in range(replicas):
        ledger.assign("m/1", ("auto",))
    counts = [len(ledger.owners()[f"cuda:{n}"]) for n in range(count)]
    assert sum(counts) == replicas
    assert max(counts) - min(counts) <= 1


def test_the_freest_device_is_chosen():
    """Of several models' first replicas each goes to the GPU with the most free memory, once the others have loaded."""
    free = {A.id: 10, B.id: 30, C.id: 20}
    ledger = Ledger([A, B, C], free=lambda: free)
    first = ledger.assign("x/1", ("auto",))
    free[B.id] = 25
    second = ledger.assign("y/1", ("auto",))
    assert ["cuda:1", "cuda:1"] == [first.device, second.device]


def test_what_loads_will_take_memory():
    """While a replica loads, the memory that it will take is free yet: the next one goes elsewhere."""
    ledger = Ledger([A, B, C], free=lambda: {A.id: 10, B.id: 30, C.id: 20})
    first = ledger.assign("x/1", ("auto",))
    second = ledger.assign("y/1", ("auto",), [first])
    third = ledger.assign("z/1", ("auto",), [first, second])
    assert ["cuda:1", "cuda:2", "cuda:0"] == [first.device, second.device, third.device]


def test_by_count_without_memory():
    """Where memory cannot be read, the GPU with the fewest replicas is chosen, and what is released is free again."""
    ledger = Ledger([A, B])
    first, second = ledger.assign("x/1", ("auto",)), ledger.assign("y/1", ("auto",))
    ledger.release(first)
    ledger.release(first)
    third = ledger.assign("z/1", ("auto",))
    assert ["cuda:0", "cuda:1", "cuda:0"] == [first.device, second.device, third.device]


def test_only_what_is_wanted():
    """A named device is given however burdened it is; a list is shared; auto without a GPU is the CPU."""
    ledger = Ledger([A, B, C])
    assert ["cuda:2"] * 3 == [ledger.assign("m/1", ("cuda:2",)).device for _ in range(3)]
    assert ["cuda:1", "cuda:2"] == sorted(ledger.assign("n/1", ("cuda:1", "cuda:2")).device for _ in range(2))
    assert Placement("cpu", "", 6) == ledger.assign("m/1", ("cpu",))
    assert "cpu" == Ledger().assign("m/1", ("auto",)).device


def test_a_device_that_does_not_exist():
    """An error names the key, the device, and those that there are."""
    with pytest.raises(ConfigError, match="device: there is no cuda:2 here; known here: cpu, cuda:0, cuda:1"):
        Ledger([A, B]).assign("m/1", ("cuda:0", "cuda:2"))


def test_what_a_worker_sees():
    """A worker on a GPU sees that one alone, as cuda:0; a worker on the CPU sees none."""
    on_gpu, on_cpu = Placement("cuda:3", A.id), Placement()
    assert ("cuda:0", "cpu") == (on_gpu.in_worker, on_cpu.in_worker)
    assert {"CUDA_VISIBLE_DEVICES": A.id, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} == on_gpu.environment
    assert "" == on_cpu.environment["CUDA_VISIBLE_DEVICES"]


@given(st.integers(1, 256), st.lists(st.integers(0, 40), max_size=6))
def test_cores_are_shared_out(cores, others):
    """`threads = "auto"`: the CPU workers of all models together have as many threads as there are cores, unless there
    are more workers than cores; a number that was given stays.
    """
    ledger = Ledger([A], cores=cores)
    specs = [spec(name=f"m{n}", workers_max=most, threads=0, devices=("cpu",)) for n, most in enumerate((1, *others))]
    specs.append(spec(name="gpu", workers_max=9, threads=0))
    settled = [ledger.settle_threads(one, (other for other in specs if other is not one)) for one in specs]
    workers = sum(max(1, one.workers_max) for one in specs[:-1])
    assert {max(1, cores // workers)} == {one.threads for one in settled[:-1]}
    assert 5 == ledger.settle_threads(spec(threads=5), specs).threads


# --- finding GPUs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        (None, [A, B, C]),
        ("", []),
        ("-1", []),
        ("2,0", [C, A]),
        (" 1 , 2 ", [B, C]),
        ("1,7,0", [B]),  # what comes after a mistake is not seen
        (B.id, [B]),
        ("GPU-c", [C]),
        ("GPU-", []),  # whose beginning it is cannot be told
        ("GPU-d,0", []),
        ("MIG-1234,0", [Gpu("MIG-1234"), A]),
        ("all", []),
    ],
)
def test_the_servers_own_limits_hold(setting, left):
    """CUDA_VISIBLE_DEVICES of the server narrows and orders what there is, as for any CUDA program."""
    assert left == visible([A, B, C], setting)


def write_driver(proc, *texts):
    for n, text in enumerate(texts):
        folder = proc / "driver" / "nvidia" / "gpus" / f"0000:{n:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t NVIDIA H100\nIRQ:   \t\t 1\n{text}Bus Type: \t PCIe\n")


@pytest.fixture
def no_library(monkeypatch):
    """As if nvidia-ml-py were not installed."""
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_found_by_the_drivers_files(tmp_path, no_library):
    """Without nvidia-ml-py the driver's files give the UUIDs in the order of the PCI addresses; a GPU that has none yet
    is known by its number.
    """
    proc, dev = tmp_path / "proc", tmp_path / "dev"
    write_driver(proc, f"GPU UUID: \t {A.id}\n", "GPU UUID: \t GPU-????????-????-????-????-????????????\n", "")
    assert [A, Gpu("1"), Gpu("2")] == find_gpus({}, proc=proc, dev=dev)
    assert [Gpu("2"), A] == find_gpus({"CUDA_VISIBLE_DEVICES": "2,0"}, proc=proc, dev=dev)
    assert {} == free_memory()


def test_found_by_device_nodes(tmp_path, no_library):
    """Where only device nodes are there, they are counted, and nothing else that is called nvidia is."""
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia0x"):
        (tmp_path / name).touch()
    assert [Gpu("0"), Gpu("1")] == find_gpus({}, proc=tmp_path / "proc", dev=tmp_path)
    assert [] == find_gpus({}, proc=tmp_path / "proc", dev=tmp_path / "dev")


class Library(types.SimpleNamespace):
    """Stands for nvidia-ml-py with these GPUs; counts how often it is open."""

    class NVMLError(Exception):
        """As the library's own."""

    def __init__(self, *gpus, error=False):
        super().__init__(gpus=gpus, error=error, opened=0)

    def nvmlInit(self):  # noqa: N802
        if self.error:
            raise self.NVMLError("driver not loaded")
        self.opened += 1

    def nvmlShutdown(self):  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return self.gpus[handle].id

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return types.SimpleNamespace(free=1000 * (handle + 1))


def test_found_by_the_library(tmp_path, monkeypatch):
    """nvidia-ml-py is asked first, tells free memory too, and is closed again after each question."""
    library = Library(A, B)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    write_driver(tmp_path, f"GPU UUID: \t {C.id}\n")
    assert [A, B] == find_gpus({}, proc=tmp_path, dev=tmp_path)
    assert {A.id: 1000, B.id: 2000} == free_memory()
    assert 0 == library.opened


def test_a_library_without_a_driver(tmp_path, monkeypatch):
    """Where nvidia-ml-py is installed and has no driver to ask, the driver's files are read, and memory is unknown."""
    monkeypatch.setitem(sys.modules, "pynvml", Library(A, error=True))
    write_driver(tmp_path, f"GPU UUID: \t {C.id}\n")
    assert [C] == find_gpus({}, proc=tmp_path, dev=tmp_path)
    assert {} == free_memory()


# --- replicas -----------------------------------------------------------------------------------------


def placements(u):
    """The device of each replica in the tree."""
    return [replica.device for replica in u.model().replicas]


async def test_replicas_get_devices(autojump_clock):
    """Replicas on `auto` are spread; each worker is told of its device as cuda:0 and has it in its environment."""
    told = []

    class Telling(ScriptedWorker):
        async def load(self, content):
            told.append((content["device"], self.child.placement.environment["CUDA_VISIBLE_DEVICES"]))

    async with universe(Telling, ledger=Ledger([A, B])) as u:
        await u.spawn(workers_min=2, workers_max=2)
        assert ["cuda:0", "cuda:1"] == placements(u)
    assert [("cuda:0", A.id), ("cuda:0", B.id)] == sorted(told)


async def test_a_device_is_free_once_its_worker_has_gone(autojump_clock):
    """A restart keeps the device; a replica that has drained, been killed or FAILED gives it back."""

    class Third(ScriptedWorker):
        async def load(self, content):
            if self.child.index == 2:
                raise LoadFailed("broken")

    ledger = Ledger([A, B, C])
    async with universe(Third, ledger=ledger) as u:
        await u.spawn(workers_min=2, workers_max=2)
        u.made[0].crash()
        await until(lambda: 3 == len(u.made))
        assert ["cuda:0", "cuda:1"] == placements(u)
        assert u.made[0].child.placement == u.made[2].child.placement
        with pytest.raises(LoadFailed):
            await u.scale(3)
        await until(lambda: not ledger.owners()["cuda:2"])
        assert {"cpu": [], "cuda:0": ["m/1"], "cuda:1": ["m/1"], "cuda:2": []} == ledger.owners()
        await u.scale(1)
        await u.spawn(name="n", workers_min=2, workers_max=2)
        assert {"cpu": [], "cuda:0": ["m/1"], "cuda:1": ["n/1"], "cuda:2": ["n/1"]} == ledger.owners()
        await u.stop()
        await u.supervisor.ask(Scale("n", "", 0, 0)).wait()
        assert not any(ledger.owners().values())


async def test_a_spawn_on_a_missing_device(autojump_clock):
    """A model that asks for a device that does not exist is not registered; the error names the known ones."""
    async with universe(ledger=Ledger([A])) as u:
        reply = u.supervisor.ask(Spawn(spec(devices=("cuda:1",))))
        with pytest.raises(LoadFailed, match="device: there is no cuda:1 here; known here: cpu, cuda:0"):
            await reply.wait()
        assert () == u.supervisor.observe().models


async def test_replicas_on_demand_get_devices(autojump_clock):
    """What autoscaling starts has its device from the same ledger, and gives it back."""
    ledger = Ledger([A, B])
    async with universe(ledger=ledger) as u:
        await u.spawn(workers_min=0, workers_max=1, downscale_delay_s=5)
        await u.ask()
        assert ["m/1"] == ledger.owners()["cuda:0"]
        await until(lambda: not u.states())
        assert not any(ledger.owners().values())


# --- the server ---------------------------------------------------------------------------------------


def models(**keys):
    return {"models": {"m": {"handler": "device_handlers:Telling", "source": os.path.dirname(__file__), **keys}}}  # noqa: PTH120


def ask(address):
    """One plain call; what the handler told."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        return json.loads(call(PredictionsRequest(model_name="m", input={"data": b""}), timeout=60).prediction)


async def told_by_all(app, count):
    """What each of so many workers tells, by its pid."""
    told = {}
    with trio.fail_after(60):
        while len(told) < count:
            one = await trio.to_thread.run_sync(ask, app.address())
            told[one["pid"]] = one
    return [told[replica.pid] for replica in app.tree().models[0].replicas]


def test_a_configured_device_that_does_not_exist(monkeypatch):
    """The server does not start, and says which key is wrong and what there is."""
    monkeypatch.setattr(configured, "find_gpus", lambda _: [A])
    settings = testing._load(models(device="cuda:4"))
    with pytest.raises(ConfigError, match=r"models\.m\.device: there is no cuda:4 here; known here: cpu, cuda:0"):
        server.Server(settings)


async def test_describe_shows_devices(autojump_clock, monkeypatch):
    """DescribeModel says which device each worker has, and whether that is a GPU."""
    monkeypatch.setattr(configured, "find_gpus", lambda _: [A, B])
    config = {
        "models": {
            "gpu": {"handler": "a:B", "workers": {"min": 2}},
            "cpu": {"handler": "a:B", "device": "cpu"},
            "one": {"handler": "a:B", "device": ["cuda:1"]},
        }
    }
    async with testing.serve(config, workers="scripted") as app:
        views = describe.description(app.tree().models)
    shown = {
        model["modelName"]: (model["deviceType"], [(worker["gpu"], worker["device"]) for worker in model["workers"]])
        for model in json.loads(views)
    }
    assert {
        "cpu": ("cpu", [(False, "cpu")]),
        "gpu": ("gpu", [(True, "cuda:0"), (True, "cuda:1")]),
        "one": ("gpu", [(True, "cuda:1")]),
    } == shown


async def test_real_workers_see_their_own_device(monkeypatch):
    """Real workers have their GPU, and no other, in CUDA_VISIBLE_DEVICES, whatever the server's says; the handler is
    told cuda:0, and the threads that it computes with.
    """
    monkeypatch.setattr(configured, "find_gpus", lambda _: [A, B])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    async with testing.serve(models(workers={"min": 2}, threads=3, batch_size=1)) as app:
        told = await told_by_all(app, 2)
    assert [A.id, B.id] == [one["visible"] for one in told]
    assert [("cuda:0", 3)] * 2 == [(one["device"], one["threads"]) for one in told]


async def test_a_worker_on_the_cpu_sees_no_gpu(monkeypatch):
    """A real worker on the CPU sees no GPU; `threads = "auto"` is its share of the cores that the server may use."""
    monkeypatch.setattr(configured, "find_gpus", lambda _: [A, B])
    async with testing.serve(models(device="cpu", threads="auto")) as app:
        (told,) = await told_by_all(app, 1)
    assert ("", "cpu", len(os.sched_getaffinity(0))) == (told["visible"], told["device"], told["threads"])


async def test_zero_one_zero_with_real_workers():
    """A real model starts its worker at the first call, answers it, ends the idle worker, and so again."""
    keys = {"workers": {"min": 0, "max": 2}, "downscale_delay_s": 0.3, "upscale_delay_s": 0.1}
    async with testing.serve(models(**keys)) as app:
        assert () == app.tree().models[0].replicas
        pids = set()
        for _ in range(2):
            pids.add((await trio.to_thread.run_sync(ask, app.address()))["pid"])
            with trio.fail_after(60):
                while app.tree().models[0].replicas:
                    await trio.sleep(0.02)
        assert 2 == len(pids)


# --- with a GPU ---------------------------------------------------------------------------------------


def gpus_or_skip():
    """The GPUs here; skips where there is none that torch can use."""
    import torch  # noqa: PLC0415

    found = find_gpus(os.environ)
    if not found or torch.version.cuda is None:
        pytest.skip("no GPU, or a torch without CUDA")
    return found


@pytest.mark.gpu
async def test_each_worker_has_one_gpu():
    """Two replicas on `auto`: each has exactly one CUDA device, the one that the tree says."""
    found = gpus_or_skip()
    async with testing.serve(models(workers={"min": 2}, options={"compute": True}, batch_size=1)) as app:
        told = await told_by_all(app, 2)
        devices = [replica.device for replica in app.tree().models[0].replicas]
    assert [1, 1] == [one["count"] for one in told]
    assert [found[int(device.removeprefix("cuda:"))].id.removeprefix("GPU-") for device in devices] == [
        one["uuid"] for one in told
    ]
    assert [8.0, 8.0] == [one["product"] for one in told]


@pytest.mark.gpu
async def test_a_cpu_worker_beside_a_gpu():
    """A replica on the CPU of a machine with a GPU sees no CUDA device."""
    gpus_or_skip()
    async with testing.serve(models(device="cpu", options={"compute": True})) as app:
        (told,) = await told_by_all(app, 1)
    assert (0, 8.0) == (told["count"], told["product"])
