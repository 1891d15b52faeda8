"""Models come, grow, change places and go while requests are on their way: none of them is lost."""

import json
import threading

import grpc
from dropin_site import served, text_of, wait_for

REQUESTS = 64
FLIPS = 6


def version(future):
    """Which version has answered."""
    return json.loads(text_of(future.result()))["version"]


def test_changes_lose_no_request(site, tmp_path):
    """While 64 requests are in flight models are registered, scaled up and down, described and listed: every request
    is answered, and every change is made.
    """
    gate = tmp_path / "gate"
    with site.registered("1/talk.mar", "busy", response_timeout=100):
        asked = [site.ask("busy", str(gate)) for _ in range(REQUESTS)]
        wait_for(lambda: site.describe("busy")["jobQueueStatus"]["pendingRequests"] > 0)
        assert "Workers scaled to 3 for model: busy" in site.manage(
            "ScaleWorker", model_name="busy", min_worker=3, synchronous=True
        )
        with site.registered("2/talk.mar", "other"):
            assert version(site.ask("other")) == "2.0"
            assert len(site.describe("busy")["workers"]) == 3
            assert '"other"' in site.manage("ListModels", limit=100)
            smaller = site.manage_later("ScaleWorker", model_name="busy", min_worker=1, synchronous=True)
            asked_itself = site.manage_later("DescribeModel", model_name="busy", customized=True)
            site.manage("DescribeModel", model_name="busy", model_version="all")
        assert not any(future.done() for future in asked)
        gate.touch()
        assert [version(future) for future in asked] == ["1.0"] * REQUESTS
        assert "Workers scaled to 1" in smaller.result().msg
        assert json.loads(asked_itself.result().msg)[0]["customizedMetadata"]["version"] == "1.0"


def test_set_default_under_load(site):
    """Eight clients ask without a version and without a pause while the default changes: not one request fails, and
    what is asked after the change is answered by the version that was chosen.
    """
    seen, failures, stop = [], [], threading.Event()

    def client():
        while not stop.is_set():
            try:
                seen.append(version(site.ask("talk")))
            except grpc.RpcError as error:
                failures.append(error.code())

    site.register("1/talk.mar")
    site.register("2/talk.mar")
    clients = [threading.Thread(target=client) for _ in range(8)]
    try:
        for one in clients:
            one.start()
        for turn in range(FLIPS):
            chosen = ("2.0", "1.0")[turn % 2]
            before = len(seen)
            said = site.manage("SetDefault", model_name="talk", model_version=chosen)
            assert said == f'Default version successfully updated for model "talk" to "{chosen}"'
            assert version(site.ask("talk")) == chosen
            wait_for(lambda before=before: len(seen) >= before + 8)
    finally:
        stop.set()
        for one in clients:
            one.join()
        site.manage("UnregisterModel", model_name="talk", model_version="2.0")
        site.manage("UnregisterModel", model_name="talk")
    assert failures == []
    assert set(seen) == {"1.0", "2.0"}


def test_an_unregistered_version_drains(site, tmp_path):
    """New calls of a version that was unregistered are refused at once, what it had is answered, its sister version
    serves on, and it can be registered again at once.
    """
    gate = tmp_path / "gate"
    site.register("2/talk.mar", model_name="leaving")
    site.register("1/talk.mar", model_name="leaving")
    try:
        asked = [site.ask("leaving", str(gate), version="1.0") for _ in range(20)]
        wait_for(lambda: site.describe("leaving", model_version="1.0")["jobQueueStatus"]["pendingRequests"])
        gone = site.manage_later("UnregisterModel", model_name="leaving", model_version="1.0")
        described = {"model_name": "leaving", "model_version": "1.0"}
        wait_for(lambda: site.manage_later("DescribeModel", **described).code() is grpc.StatusCode.NOT_FOUND)
        assert site.ask("leaving", version="1.0").code() is grpc.StatusCode.NOT_FOUND
        assert version(site.ask("leaving")) == "2.0"
        assert not gone.done()
        gate.touch()
        assert [version(future) for future in asked] == ["1.0"] * 20
        assert gone.result().msg == 'Model "leaving" unregistered'
        site.register("1/talk.mar", model_name="leaving")
        assert version(site.ask("leaving", version="1.0")) == "1.0"
        site.manage("UnregisterModel", model_name="leaving", model_version="1.0")
    finally:
        site.manage("UnregisterModel", model_name="leaving")


def test_again_and_again(site):
    """A model is registered right after it was unregistered, several times, and answers each time."""
    for _ in range(4):
        with site.registered("1/talk.mar", "again"):
            assert version(site.ask("again")) == "1.0"
        assert site.ask("again").code() is grpc.StatusCode.NOT_FOUND


def test_every_request_has_an_ending(archives, tmp_path):
    """A worker that never answers holds an unregistration up for the grace and no longer: the request that it had and
    those that were queued end with UNAVAILABLE, and the model can be registered again.
    """
    (tmp_path / "store").symlink_to(archives / "store")
    with served(tmp_path, grace_s=0.5) as site:
        site.register("1/talk.mar")
        asked = [site.ask("talk", str(tmp_path / "never")) for _ in range(20)]
        wait_for(lambda: site.describe("talk")["jobQueueStatus"]["pendingRequests"])
        assert site.manage("UnregisterModel", model_name="talk") == 'Model "talk" unregistered'
        assert {future.code() for future in asked} == {grpc.StatusCode.UNAVAILABLE}
        site.register("1/talk.mar")
        assert version(site.ask("talk")) == "1.0"
