"""Evaluate configurations in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ....core import errors
from ....core.errors import ConfigError, DistillError
from ...common.cost import available_cores
from .space import Channels, encode

__all__ = ["EvaluationPool"]

Evaluate = Callable[[Channels], Mapping[str, float]]


class EvaluationPool:
    """Evaluates configurations, in order, with one evaluator a process.

    Args:
        make: Makes the evaluator, once in each process. With several processes it must be
            picklable: a function of a module, or :func:`functools.partial` of a class.
        jobs: Processes. 1 evaluates in this one. Each of several gets its share of the cores.
        threads: CPU threads of each; by default the cores over ``jobs``.

    Raises:
        ConfigError: If ``jobs`` or ``threads`` is below 1.
        DistillError: In use, if an evaluation fails or a process dies. What the evaluator raised on
            purpose keeps its class and text.

    Example:
        >>> with EvaluationPool(lambda: lambda channels: dict(L1=1 / sum(channels))) as pool:
        ...     list(pool([(1, 3), (2, 8)]))
        [{'L1': 0.25}, {'L1': 0.1}]
    """

    def __init__(
        self, make: Callable[[], Evaluate], jobs: int = 1, threads: int | None = None
    ) -> None:
        if jobs < 1 or (threads is not None and threads < 1):
            raise ConfigError(
                f"Expected at least one process and one thread, got jobs={jobs}, threads={threads}."
            )
        self._make, self.jobs, self.threads = make, jobs, threads
        self._own: Evaluate | None = None
        self._workers: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> EvaluationPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, also in the middle of an evaluation."""
        for process, connection in self._workers:
            connection.close()
            process.terminate()
        for process, _ in self._workers:
            process.join()
        self._workers = []

    def __call__(self, configs: Sequence[Channels]) -> Iterator[dict[str, float]]:
        """Yield the figures of each configuration, in order, as soon as they are known."""
        if self.jobs == 1:
            yield from self._here(configs)
            return
        try:
            yield from self._spread(configs)
        except BaseException:
            self.close()
            raise

    def _here(self, configs: Sequence[Channels]) -> Iterator[dict[str, float]]:
        if configs and self._own is None:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            self._own = self._make()
        for channels in configs:
            assert self._own is not None
            yield dict(self._own(channels))

    def _spread(self, configs: Sequence[Channels]) -> Iterator[dict[str, float]]:
        self._start(min(self.jobs, len(configs)))
        waiting = list(enumerate(configs))[::-1]
        free = [connection for _, connection in self._workers]
        at_work: dict[Connection, tuple[int, Channels]] = {}
        known: dict[int, dict[str, float] | DistillError] = {}
        failed = False
        for index in range(len(configs)):
            while index not in known:
                # After an error there are only the results of what was begun before.
                while free and waiting and not failed:
                    connection, job = free.pop(0), waiting.pop()
                    at_work[connection] = job
                    self._send(connection, job)
                for ready in wait(list(at_work)):
                    assert isinstance(ready, Connection)
                    number, channels = at_work.pop(ready)
                    try:
                        known[number] = self._receive(ready, channels)[1]
                        free.append(ready)
                    except DistillError as error:
                        known[number], failed = error, True
            found = known.pop(index)
            if isinstance(found, DistillError):
                raise found
            yield found

    def _start(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork may deadlock torch's threads
        threads = self.threads or max(1, available_cores() // self.jobs)
        with _children_ignore_interrupt():
            while len(self._workers) < count:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, self._make, threads), daemon=True
                )
                process.start()
                # Held here too, the end of the process would not be noticed.
                theirs.close()
                self._workers.append((process, ours))

    def _send(self, connection: Connection, job: tuple[int, Channels]) -> None:
        # To one that has died nothing can be sent; it is noticed when its answer is awaited.
        with suppress(OSError):
            connection.send(job)

    def _receive(self, connection: Connection, channels: Channels) -> tuple[int, dict[str, float]]:
        try:
            kind, number, value = connection.recv()
        except (EOFError, OSError):
            raise self._died(connection, channels) from None
        if kind == "result":
            return number, value
        if kind == "unexpected":
            raise DistillError(
                f"Evaluating {encode(channels)} failed in another process:\n{value}With --jobs 1 "
                "it happens in this one, for a debugger."
            )
        raise getattr(errors, kind)(value)

    def _died(self, connection: Connection, channels: Channels) -> DistillError:
        process = next(p for p, ours in self._workers if ours is connection)
        process.join(timeout=5.0)
        return DistillError(
            f"The process that evaluated {encode(channels)} ended by itself (exit code "
            f"{process.exitcode}); -9 as a rule means that memory ran out. Use fewer --jobs. The "
            "same command continues."
        )


def _work(connection: Connection, make: Callable[[], Evaluate], threads: int) -> None:
    """What a process does until the other end is closed, whatever closes it."""
    torch.set_num_threads(threads)
    evaluate: Evaluate | None = None
    while True:
        try:
            number, channels = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if evaluate is None:
                evaluate = make()
            answer: tuple[str, int, Any] = ("result", number, dict(evaluate(channels)))
        except DistillError as error:
            kind = type(error).__name__
            answer = (kind if hasattr(errors, kind) else "DistillError", number, str(error))
        except Exception:
            answer = ("unexpected", number, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return


@contextmanager
def _children_ignore_interrupt() -> Iterator[None]:
    """Let processes that start now leave Ctrl-C, which reaches them too, to their parent."""
    if os.name == "nt" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
