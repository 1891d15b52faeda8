"""A client that was not written here: torchserve-client from PyPI, unmodified. It is fetched when the test runs, once
for all runs (pytest's cache), and never committed.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest
from dropin_site import PATIENCE_S, ROOT

WHEEL = "torchserve_client-0.0.2-py3-none-any.whl"
SHA256 = "682446845ba743a678bfaefa5015f79d22e9fc266db3291a64d91e79b6f25bbc"
SCRIPT = """
import json, sys
from torchserve_client.grpc import ManagementClient

client = ManagementClient("http://127.0.0.1", port=int(sys.argv[1]))
calls = [
    lambda: client.register_model(url="densenet161.mar", initial_workers=1, synchronous=True),
    lambda: client.scale_worker("densenet161", min_worker=2, synchronous=True),
    lambda: client.describe_model("densenet161"),
    lambda: client.list_models(),
    lambda: client.set_default("densenet161", "1.0"),
    lambda: client.unregister_model("densenet161"),
    lambda: client.list_models(limit=100),
]
print(json.dumps([call().msg for call in calls]))
"""


@pytest.fixture
def published(pytestconfig, tmp_path):
    """A folder with the package as the wheel has it."""
    wheel = pytestconfig.cache.mkdir("wheels") / WHEEL
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", wheel.parent, "torchserve-client==0.0.2"], check=True, timeout=PATIENCE_S)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    return tmp_path


def test_management_client(site, published):
    """Its ManagementClient registers, scales, describes, lists and unregisters DenseNet-161; a list without a limit
    lists.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, site.management.rpartition(":")[2]],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(published)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    registered, scaled, described, listed, chosen, unregistered, left = json.loads(done.stdout)
    assert registered == 'Model "densenet161" Version: 1.0 registered with 1 initial workers'
    assert scaled == "Workers scaled to 2 for model: densenet161"
    (model,) = json.loads(described)
    assert [worker["status"] for worker in model["workers"]] == ["READY"] * 2
    assert {"modelName": "densenet161", "modelUrl": "densenet161.mar"} in json.loads(listed)["models"]
    assert chosen == 'Default version successfully updated for model "densenet161" to "1.0"'
    assert unregistered == 'Model "densenet161" unregistered'
    assert "densenet161" not in left
