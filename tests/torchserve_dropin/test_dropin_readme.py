"""The README's table of TorchServe's calls: every rpc is there, and its example does what it says."""

import re
import subprocess
import sys

from dropin_site import PATIENCE_S, ROOT

from actorserve.proto import inference_pb2, management_pb2

ROW = re.compile(r"^\| (\w+) \| `python (examples/torchserve_client\.py) ([^`]+)`", re.MULTILINE)
SAYS = {
    "Ping": '"status": "Healthy"',
    "Predictions": '"digit": 7',
    "StreamPredictions": '"digit": 7',
    "StreamPredictions2": 's1: {"digit": 2',
    "RegisterModel": 'Model "densenet161" Version: 1.0 registered with 1 initial workers',
    "ScaleWorker": "Workers scaled to 2 for model: densenet161",
    "ListModels": '"modelUrl": "densenet161.mar"',
    "DescribeModel": '"modelVersion": "1.0"',
    "SetDefault": 'Default version successfully updated for model "densenet161" to "1.0"',
    "UnregisterModel": 'Model "densenet161" unregistered',
}


def test_each_call_of_the_readme(site):
    """The examples run one after the other, as they stand but for the ports, and each prints what it should."""
    rows = {rpc: [script, *words.split()] for rpc, script, words in ROW.findall((ROOT / "README.md").read_text())}
    services = [next(iter(one.DESCRIPTOR.services_by_name.values())) for one in (inference_pb2, management_pb2)]
    methods = [method.name for service in services for method in service.methods]
    ports = ("--inference", site.inference, "--management", site.management)
    site.manage(
        "RegisterModel",
        model_name="digits",
        handler="actorserve.handlers.digits:Digits",
        initial_workers=1,
        synchronous=True,
    )
    said = {}
    for rpc, command in rows.items():
        done = subprocess.run(
            [sys.executable, *command, *ports],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        said[rpc] = done.stdout + done.stderr
    site.manage("UnregisterModel", model_name="digits")

    assert sorted(rows) == sorted(methods)
    assert {rpc: SAYS[rpc] in text for rpc, text in said.items()} == dict.fromkeys(rows, True), said
