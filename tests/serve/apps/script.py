"""A script that runs an application and asks it; the first argument says what it does at its end."""

import asyncio
import sys
import threading

from actorserve import serve
from actorserve.serve.exceptions import DeploymentUnavailableError, ServeError


def say_when_over():
    """Say "waiting" once the main script is at its end."""
    threading.main_thread().join()
    print("waiting", flush=True)


class Price(Exception):
    """An exception of the script's own."""


@serve.deployment
class Orange:
    def __init__(self, price):
        self.price = price

    def check(self, amount):
        if amount < 0:
            raise Price(amount)
        return self.price * amount

    async def count(self, upto):
        for number in range(upto):
            yield number


@serve.deployment(num_replicas=2)
class Market:
    def __init__(self, orange):
        self.orange = orange

    async def __call__(self, amount):
        return await self.orange.check.remote(amount)

    def blocking(self, upto):
        return sum(self.orange.options(stream=True).count.remote(upto))

    async def other(self, amount):
        return await serve.get_app_handle("second").check.remote(amount)


@serve.deployment
class Broken:
    def __init__(self):
        raise Price("never")


handle = serve.run(Market.bind(Orange.bind(3)), name="first")  # at the top level, as Ray's page has it
serve.run(Orange.bind(7), name="second")

if __name__ == "__main__":
    print(handle.remote(4).result(timeout_s=20), handle.blocking.remote(60).result(), handle.other.remote(2).result())
    try:
        handle.remote(-1).result()
    except Price as error:
        print("Price", error)
    print(sum(serve.get_deployment_handle("Orange", "first").options(stream=True).count.remote(100)))
    try:
        handle.remote(asyncio.Event().wait()).result()
    except TypeError as error:
        print("TypeError", "cannot be pickled" in str(error))
    status = serve.status()
    print({name: (one.status, sorted(one.deployments)) for name, one in status.applications.items()})
    try:
        serve.run(Broken.options(max_constructor_retry_count=0).bind(), name="third")
    except RuntimeError as error:  # as Ray's
        print("RuntimeError", isinstance(error, ServeError), "never" in str(error))
    serve.delete("nobody")
    serve.delete("second")
    print({name: one.status for name, one in serve.status().applications.items()})
    try:
        handle.other.remote(2).result()
    except DeploymentUnavailableError as error:
        print(type(error).__name__)
    match sys.argv[1]:
        case "shutdown":
            serve.shutdown()
        case "again":
            serve.run(Market.bind(Orange.bind(5)), name="first")
            print(handle.remote(4).result())
            serve.shutdown()
            serve.shutdown()
        case "raise":
            raise Price("the end")
        case "wait":
            threading.Thread(target=say_when_over).start()
