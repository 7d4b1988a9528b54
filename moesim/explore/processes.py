"""Run a function over many tasks in worker processes; a task that kills its worker does not take others with it."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class WorkerDied(RuntimeError):
    """The process that ran a task ended without an answer."""


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_executor(function: Callable[[T], R], tasks: Sequence[T], executor: Executor) -> Iterator[tuple[T, R]]:
    """Yield each task with ``function(task)`` as they finish on *executor*; what breaks the executor is raised."""
    flying = {executor.submit(function, task): task for task in tasks}
    try:
        for future in as_completed(flying):
            yield flying[future], future.result()
    finally:
        for future in flying:
            future.cancel()


def in_processes(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[tuple[T, R | WorkerDied]]:
    """Yield each task with ``function(task)`` as they finish on *workers* fresh processes.

    When a process dies (out of memory, say), the tasks that were running are run again, one at a time in a process of
    their own, and the one that dies again yields ``WorkerDied``. Raises ``RuntimeError`` if processes cannot start.
    """
    queue = deque(tasks)
    while queue:
        suspects = yield from _until_one_dies(function, queue, min(workers, len(queue)))
        for suspect in suspects:
            killers = yield from _until_one_dies(function, deque([suspect]), 1)
            for task in killers:
                yield task, WorkerDied("the worker process died while it ran this point (out of memory?)")


def _until_one_dies(function: Callable[[T], R], queue: deque[T], workers: int
                    ) -> Generator[tuple[T, R], None, list[T]]:
    """Yield tasks of *queue* with their answers; return those in flight when a process died, or none at the end."""
    others = set(multiprocessing.active_children())
    flying: dict[Future[R], T] = {}
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_settle)
    submit = functools.partial(_submit, pool, b"__main__" not in pickle.dumps(function))
    try:
        _start(submit)
        while queue or flying:
            while queue and len(flying) <= workers:  # one more than runs, so that no process waits for the next
                future = submit(function, queue[0])
                flying[future] = queue.popleft()
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                answer = future.result()
                yield flying.pop(future), answer
        return []
    except BrokenProcessPool:
        return list(flying.values())
    except BaseException:  # interrupted, or nobody listens any more: do not wait for what still runs
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _main_unseen() -> Iterator[None]:
    """Let processes start without importing the calling script.

    So a sweep also runs from a notebook, from standard input, and from a script without a ``__main__`` guard.
    """
    main = vars(sys.modules["__main__"])
    seen: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.pop("__spec__")
        main.update(seen)


def _start(submit: Callable[..., Future[int]]) -> None:
    try:
        submit(os.getpid).result()
    except BrokenProcessPool:
        raise RuntimeError("the worker processes could not start; a script with metrics of its own must call sweep "
                           "under `if __name__ == \"__main__\":`, for every worker imports it; or pass a "
                           "ThreadPoolExecutor") from None


def _submit(pool: ProcessPoolExecutor, alone: bool, function: Callable[..., R], *arguments: Any) -> Future[R]:
    """Submit to *pool*; a process that this starts never sees Ctrl-C, not even while it loads.

    *alone*: it needs nothing of the calling script.
    """
    with _main_unseen() if alone else nullcontext():
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return pool.submit(function, *arguments)
        return _submit_masked(pool, function, *arguments)


def _submit_masked(pool: ProcessPoolExecutor, function: Callable[..., R], *arguments: Any) -> Future[R]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # held back here, inherited by new processes
    try:
        return pool.submit(function, *arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _settle() -> None:
    """Prepare a worker: the parent alone answers Ctrl-C, and a worker ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
