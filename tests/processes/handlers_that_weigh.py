"""A handler with a weight of its own, for test_processes_weight.py."""

import time


class Weighing:
    """An item weighs its bytes; its answer is what was in its forward. `slow` gives others time to queue."""

    def weight(self, request):
        return len(request.inputs["data"])

    def infer(self, batch):
        said = [request.inputs["data"].decode() for request in batch]
        if "slow" in said:
            time.sleep(0.3)
        return [said] * len(batch)
