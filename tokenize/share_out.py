"""Work shared out to threads that compute alone, so that no result depends on their number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")


def share_out(compute: Callable[[Job], None], jobs: Sequence[Job]) -> None:
    """Run all jobs on `torch.get_num_threads()` threads, each of which computes with one thread.

    PyTorch's own threads split a matrix product by their number, and so decide the last bits of some.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        for job in jobs:
            compute(job)
        return
    queue = iter(jobs)
    lock = threading.Lock()

    def work() -> None:
        torch.set_num_threads(1)  # of OpenMP for this thread, of MKL for all of them
        with torch.no_grad():
            while True:
                with lock:
                    job = next(queue, None)
                if job is None:
                    return
                compute(job)

    try:
        with ThreadPoolExecutor(num_threads) as pool:
            workers = [pool.submit(work) for _ in range(num_threads)]
    finally:
        torch.set_num_threads(num_threads)
    for worker in workers:
        worker.result()
