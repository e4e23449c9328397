"""What a call costs, by the clock."""

import time
from collections.abc import Callable

import torch


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call, to its end on an accelerator too."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def quickest(call: Callable[[], object], times: int = 3) -> float:
    """Least wall-clock time of several calls after one that does not count: what a table beside others' times shows."""
    call()
    return min(seconds(call) for _ in range(times))
