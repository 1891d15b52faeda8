"""Changes of an application under way: user_config in place, more replicas, other code, what is refused."""

import asyncio
import os
import tempfile
import threading
from pathlib import Path

from actorserve import serve
from actorserve.serve.exceptions import DeploymentUnavailableError, ServeError


@serve.deployment(num_replicas=2, user_config={"word": "one"})
class Word:
    def __init__(self, suffix):
        self.suffix = suffix
        self.word = ""

    def reconfigure(self, config):
        if config["word"] == "bad":
            raise ValueError("no such word")
        self.word = config["word"]

    async def __call__(self):
        return f"{self.word}{self.suffix}", os.getpid()

    async def gated(self, number, folder):
        """Answers once the folder has "open" in it. Fails if the same call begins twice."""
        Path(folder, str(number)).touch(exist_ok=False)  # noqa: ASYNC240  # quick
        while not Path(folder, "open").exists():  # noqa: ASYNC240  # quick
            await asyncio.sleep(0.005)
        return f"{number}{self.suffix}"


@serve.deployment(health_check_period_s=0.05, health_check_timeout_s=5, user_config={"sick": 0})
class Patient:
    def reconfigure(self, config):
        self.sick = config["sick"] == os.getpid()

    def check_health(self):
        if self.sick:
            raise RuntimeError("not well")

    def __call__(self):
        return os.getpid()


def asked(handle, times=20):
    answers = [handle.remote() for _ in range(times)]
    found = [answer.result(timeout_s=20) for answer in answers]
    return {word for word, _ in found}, {pid for _, pid in found}


def main():
    handle = serve.run(Word.bind("!"))
    words, pids = asked(handle)
    print("first", words)
    serve.run(Word.options(user_config={"word": "two"}).bind("!"))
    words, after = asked(handle)
    print("in place", words, after <= pids)
    try:
        serve.run(Word.options(user_config={"word": "bad"}).bind("!"))
    except ServeError as error:
        print(error)
    print("kept", asked(handle)[0])
    serve.run(Word.options(user_config={"word": "two"}, num_replicas=3).bind("!"))
    print("more", sum(serve.status().applications["default"].deployments["Word"].replica_states.values()))

    failed, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            try:
                asked(handle, 8)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is too much
                failed.append(error)

    folder = tempfile.mkdtemp()
    flying = [handle.gated.remote(number, folder) for number in range(64)]
    while len(os.listdir(folder)) < 3 * 5:  # as many as three replicas have in hand; the others wait
        pass
    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    serve.run(Word.options(user_config={"word": "three"}, num_replicas=2).bind("?"))
    words, pids = asked(handle)
    begun = len(os.listdir(folder))
    Path(folder, "open").touch()
    answers = [one.result(timeout_s=20) for one in flying]
    print("in flight", begun, answers == [f"{number}!" for number in range(64)])
    stop.set()
    for thread in threads:
        thread.join()
    print("rolled", words, bool(pids & after), failed)
    try:
        serve.run(Word.options(max_constructor_retry_count=0).bind())
    except TypeError:
        print("TypeError")

    counts = []
    for code, scaling in (("?", {"initial_replicas": 3}), ("??", {})):
        word = Word.options(user_config={"word": "four"}, autoscaling_config={"max_replicas": 4, **scaling})
        serve.run(word.bind(code), name="scaled")
        counts.append(sum(serve.status().applications["scaled"].deployments["Word"].replica_states.values()))
    print("scaled", *counts)
    hospital()
    serve.shutdown()


def hospital():
    patient = serve.run(Patient.bind(), name="hospital")
    pid = patient.remote().result()
    serve.run(Patient.options(user_config={"sick": pid}).bind(), name="hospital")
    while True:
        try:
            if patient.remote().result() != pid:
                break
        except DeploymentUnavailableError:  # it was killed with this call in hand
            continue
    print("replaced")


if __name__ == "__main__":
    main()
