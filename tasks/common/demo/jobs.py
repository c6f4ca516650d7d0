"""Run training jobs that depend on one another, side by side, and continue where they stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from ....core.errors import ConfigError, DistillError, did_you_mean
from ..files import read_json, write_json
from .results import TrainingLog, read_log

__all__ = [
    "CONSOLE_FILE",
    "EVALUATION_DIR",
    "IDENTITY_FILE",
    "RESULT_FILE",
    "Display",
    "Job",
    "JobFailed",
    "JobQueue",
    "JobState",
    "Result",
    "clock",
    "final_metrics",
    "fingerprint",
    "seconds_left",
]

IDENTITY_FILE = "job.json"
RESULT_FILE = "result.json"
CONSOLE_FILE = "console.log"
EVALUATION_DIR = "final"

# "Epoch(train)  [9][10/63]" of an epoch-based run, "Iter(train) [  10/20000]" of the other kind.
_EPOCH_LINE = re.compile(r"Epoch\(train\)\s*\[\s*(\d+)\]\[\s*(\d+)/(\d+)\]")
_ITER_LINE = re.compile(r"Iter\(train\)\s*\[\s*(\d+)/(\d+)\]")


# The states that a job does not leave.
_OVER = ("finished", "failed")


class JobFailed(DistillError, RuntimeError):
    """A training process ended with an error, or without the figures it was started for."""


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: Short name, unique within a queue.
        command: Command line that starts or continues the run.
        work_dir: Folder of the run, made and owned by the queue.
        length: Epochs (or iterations) of the whole run; the step of its last validation.
        checkpoint: File that exists once the run is over.
        metric: Validation figure to show while it runs, as it is called in the log; a run without
            it has failed. Empty where any figures will do.
        signature: Stands for everything that decides the outcome; another signature, another run.
        needs: Names of the jobs that have to be over first.
        exclusive: Runs with nothing beside it, on all cores: what the others wait for.
        effort: Expected cost relative to the other jobs, for the first estimate of the time left.
        evaluate: Command line that validates the finished checkpoint. Used where the run was
            interrupted between its last checkpoint and its last validation.
        role: What the run stands for in a comparison; runs of one role differ by their seed.
        after: Names of the runs whose time is part of what this one's model cost.
        unit: What ``length`` counts: ``epoch`` or ``iteration``.

    A command that trains several networks and compares them by itself has no last validation of
    its own: where ``checkpoint`` is ``result.json`` in the work folder, the command writes that
    file at its end, ``{"metrics": {"accuracy/top1": 71.2}}``, and the figures are taken from it.
    """

    name: str
    command: tuple[str, ...]
    work_dir: Path
    length: int
    checkpoint: Path
    metric: str
    signature: str
    needs: tuple[str, ...] = ()
    exclusive: bool = False
    effort: float = 1.0
    evaluate: tuple[str, ...] = ()
    role: str = ""
    after: tuple[str, ...] = ()
    unit: str = "epoch"

    @property
    def writes_result(self) -> bool:
        """Whether the command itself leaves the figures behind."""
        return self.checkpoint == self.work_dir / RESULT_FILE


@dataclass(frozen=True)
class Result:
    """What a finished job left behind.

    Attributes:
        metrics: Figures of the validation after the last epoch.
        seconds: Time the job ran, over all its continuations.
        checkpoint: Its last checkpoint.
    """

    metrics: dict[str, float]
    seconds: float
    checkpoint: Path


@dataclass
class JobState:
    """Where a job stands: what the display shows and the estimate is made from.

    Attributes:
        job: The job.
        status: ``waiting``, ``running``, ``finished``, ``failed`` or ``stopped``.
        fraction: Share of the training that is done, 0 to 1.
        start_fraction: The share that was done when this process started.
        seconds: Time spent so far, over all continuations.
        run_seconds: Time spent by the present process.
        threads: CPU threads the process was given.
        position: Epoch or iteration, as text.
        loss: Last logged loss.
        metric: Last validation figure.
        figures: Names of all figures of the last validation.
    """

    job: Job
    status: str = "waiting"
    fraction: float = 0.0
    start_fraction: float = 0.0
    seconds: float = 0.0
    run_seconds: float = 0.0
    threads: int = 0
    position: str = ""
    loss: float | None = None
    metric: float | None = None
    figures: tuple[str, ...] = ()

    def refresh(self) -> None:
        """Read the position and the figures from the job's logs."""
        log = read_log(self.job.work_dir)
        if log.train:
            self.loss = log.train[-1].get("loss")
        if log.val:
            self.metric = log.val[-1].get(self.job.metric)
            self.figures = tuple(key for key in log.val[-1] if key != "step")
        if self.job.writes_result:
            # Its logs are those of several trainings; how many there are to be is not known.
            self.position = _position(self.job, log)[1]
            return
        done, self.position = _position(self.job, log)
        self.fraction = min(1.0, max(done, log.val[-1]["step"] / self.job.length if log.val else 0))


def _position(job: Job, log: TrainingLog) -> tuple[float, str]:
    """Return the share done and the position as text.

    They come from mmengine's last line of progress in the console log; where it has none, from the
    epoch of the last training row, which counts its fraction.
    """
    try:
        with (job.work_dir / CONSOLE_FILE).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
    if found := _EPOCH_LINE.findall(text):
        epoch, step, steps = map(int, found[-1])
        return (epoch - 1 + step / steps) / job.length, f"epoch {epoch}/{job.length}"
    if found := _ITER_LINE.findall(text):
        step, steps = map(int, found[-1])
        return step / steps, f"iteration {step}/{steps}"
    epoch = log.train[-1].get("epoch") if log.train and job.unit == "epoch" else None
    if epoch is None:
        return 0.0, ""
    return epoch / job.length, f"epoch {math.ceil(epoch)}/{job.length}"


class Display(Protocol):
    """What a queue tells about itself."""

    def update(self, states: Sequence[JobState], seconds_left: float | None) -> None:
        """Show where the jobs stand; called about once a second."""
        ...

    def note(self, text: str) -> None:
        """Show one line that stays."""
        ...


@dataclass
class _Running:
    state: JobState
    process: subprocess.Popen[bytes]
    console: IO[bytes]
    started: float
    seconds_before: float
    saved: float
    evaluating: bool = False


@dataclass
class JobQueue:
    """A queue of jobs with dependencies, resumable at any point.

    A finished job leaves ``result.json`` in its folder and is not run again, unless its signature
    or a job it needs has changed since. An unfinished one is started with the same command, which
    has to continue from its last checkpoint by itself. All children are ended, first kindly, when
    one fails (unless ``keep_going``) and when the queue is interrupted.

    Args:
        jobs: The jobs, in order of preference.
        slots: Jobs to run at once.
        cores: CPU cores to share out among them.
        display: Where progress is shown.
        inherit: File descriptors that the children keep open.
        poll: Seconds between two looks at the children.
        grace: Seconds between asking a child to stop and killing it.
        closing: Seconds that follow the last job, for the estimate of the time left.
        keep_going: Whether the others go on when a job fails. What failed is in ``failures``
            afterwards, by name, those that needed it included.

    Raises:
        ConfigError: A name occurs twice, or a needed job is not in the queue or comes later.
    """

    jobs: Sequence[Job]
    slots: int
    cores: int
    display: Display
    inherit: Sequence[int] = ()
    poll: float = 0.5
    grace: float = 10.0
    closing: float = 0.0
    keep_going: bool = False
    failures: dict[str, JobFailed] = field(init=False, default_factory=dict)
    _states: dict[str, JobState] = field(init=False, default_factory=dict)
    _running: dict[str, _Running] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for job in self.jobs:
            if job.name in self._states:
                raise ConfigError(f"Two jobs are called {job.name!r}; give each its own name.")
            for name in job.needs:
                if name not in self._states:
                    raise ConfigError(
                        f"Job {job.name!r} needs {name!r}, which is not a job listed before it."
                        f"{did_you_mean(name, self._states)}"
                    )
            self._states[job.name] = JobState(job)
        if self.slots < 1 or self.cores < 1:
            raise ConfigError(
                f"Expected at least one slot and one core, got {self.slots} and {self.cores}."
            )

    def run(self) -> dict[str, Result]:
        """Run what is not done yet.

        Returns:
            The result of every job that did not fail, by name.

        Raises:
            JobFailed: A job failed; the others were stopped. Not with ``keep_going``.
            KeyboardInterrupt: The user stopped the queue; the children were stopped.
        """
        for job in self.jobs:
            self._settle(self._states[job.name])
        try:
            while self._unfinished():
                self._start_ready()
                time.sleep(self.poll)
                for name in list(self._running):
                    self._look_after(name)
                states = list(self._states.values())
                self.display.update(states, seconds_left(states, self.slots, self.closing))
        finally:
            self._stop_all()
        return {
            name: self._result(state)
            for name, state in self._states.items()
            if name not in self.failures
        }

    def _unfinished(self) -> bool:
        for name, state in self._states.items():
            lost = next((need for need in state.job.needs if need in self.failures), None)
            if state.status == "waiting" and lost is not None:
                self._fail(state, JobFailed(f"{name} needs {lost}, which failed."))
        return any(state.status not in _OVER for state in self._states.values())

    def _fail(self, state: JobState, error: JobFailed) -> None:
        state.status = "failed"
        if not self.keep_going:
            raise error
        self.failures[state.job.name] = error
        self.display.note(
            f"{state.job.name}: failed; the others go on ({state.job.work_dir / CONSOLE_FILE})"
        )

    # -- one job's life ---------------------------------------------------------------------------

    def _settle(self, state: JobState) -> None:
        """Decide from what is on disk whether a job is finished, to continue, or to start."""
        job = state.job
        identity = read_json(job.work_dir / IDENTITY_FILE)
        if identity is None:
            if job.work_dir.is_dir() and any(job.work_dir.iterdir()):
                raise ConfigError(
                    f"{job.work_dir} holds files that no demo made, nor a comparison. "
                    "Remove the folder, or choose another one to work in."
                )
            return
        if identity["signature"] != job.signature or not self._same_inputs(job, identity):
            self.display.note(
                f"{job.name}: its configuration, or a job it needs, has changed; it starts afresh."
            )
            shutil.rmtree(job.work_dir)
            return
        state.seconds = identity["seconds"]
        metrics = _stored_metrics(job)
        if metrics is not None and job.checkpoint.is_file():
            state.refresh()
            state.fraction, state.status = 1.0, "finished"
            state.metric = metrics.get(job.metric)
            state.figures = tuple(key for key in metrics if key != "step")
            self.display.note(f"{job.name}: already finished.")

    def _same_inputs(self, job: Job, identity: Mapping[str, Any]) -> bool:
        if set(identity["inputs"]) != set(job.needs):
            return False
        return all(self._run_id(name) == run for name, run in identity["inputs"].items())

    def _run_id(self, name: str) -> str | None:
        identity = read_json(self._states[name].job.work_dir / IDENTITY_FILE)
        return identity["run"] if identity else None

    def _start_ready(self) -> None:
        ready = [
            state
            for state in self._states.values()
            if state.status == "waiting"
            and all(self._states[name].status == "finished" for name in state.job.needs)
        ]
        starting = ready[: max(0, self.slots - len(self._running))]
        exclusive = [state for state in ready if state.job.exclusive]
        if self._running and (exclusive or self._exclusive_runs()):
            return
        starting = exclusive[:1] or starting
        # Threads are dealt out at the start: a job that begins alone gets all the cores.
        threads = max(1, self.cores // max(1, len(self._running) + len(starting)))
        for state in starting:
            self._prepare(state)
            state.start_fraction = state.fraction
            state.status, state.threads = "running", threads
            continued = state.start_fraction > 0
            self.display.note(
                f"{state.job.name}: {'continues' if continued else 'starts'} on {threads} "
                f"thread{'s' if threads > 1 else ''} ({state.job.work_dir / CONSOLE_FILE})"
            )
            self._spawn(state, state.job.command)

    def _exclusive_runs(self) -> bool:
        return any(s.job.exclusive for s in self._states.values() if s.status == "running")

    def _prepare(self, state: JobState) -> None:
        job = state.job
        if (job.work_dir / IDENTITY_FILE).exists():
            state.refresh()
            return
        inputs = {name: self._run_id(name) for name in job.needs}
        identity = {
            "signature": job.signature,
            "run": uuid.uuid4().hex,
            "inputs": inputs,
            "seconds": 0.0,
        }
        write_json(job.work_dir / IDENTITY_FILE, identity)

    def _spawn(self, state: JobState, command: Sequence[str], evaluating: bool = False) -> None:
        threads = str(state.threads)
        console = (state.job.work_dir / CONSOLE_FILE).open("ab")
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    # Threads that wait for a core that another process has must not spin: on a
                    # busy machine a step with two threads took ten times as long.
                    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
                    "PYTHONUNBUFFERED": "1",
                },
                # A group of its own, so that Ctrl-C reaches the queue alone and the queue can end
                # a child together with its data loading workers.
                start_new_session=True,
                pass_fds=tuple(self.inherit),
            )
        except OSError as error:
            console.close()
            name = state.job.name
            self._fail(
                state, JobFailed(f"{name} could not be started: {command[0]}: {error.strerror}.")
            )
            return
        now = time.monotonic()
        self._running[state.job.name] = _Running(
            state, process, console, now, state.seconds, now, evaluating
        )

    def _look_after(self, name: str) -> None:
        running = self._running[name]
        state, job = running.state, running.state.job
        code = running.process.poll()
        state.run_seconds = time.monotonic() - running.started
        state.seconds = running.seconds_before + state.run_seconds
        state.refresh()
        if code is None:
            if time.monotonic() - running.saved > 10.0:
                # So that the time spent is known even if this process is killed.
                self._save_seconds(state)
                running.saved = time.monotonic()
            return
        self._close(name)
        if code:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            self._fail(state, self._failure(job, how))
            return
        metrics = final_metrics(job)
        if metrics is None:
            if running.evaluating or not job.evaluate:
                lacking = f"a validation at {job.length}, the end of the run"
                if job.writes_result:
                    lacking = f"the figures it was to write to {job.checkpoint}"
                self._fail(state, self._failure(job, f"ended without {lacking}"))
                return
            self._spawn(state, job.evaluate, evaluating=True)
            return
        if not job.checkpoint.is_file():
            how = f"ended without its checkpoint {job.checkpoint}"
            self._fail(state, self._failure(job, how))
            return
        if not job.writes_result:
            write_json(job.work_dir / RESULT_FILE, {"metrics": metrics})
        state.figures = tuple(key for key in metrics if key != "step")
        state.fraction, state.status = 1.0, "finished"
        state.metric = metrics.get(job.metric)
        self.display.note(f"{name}: finished after {clock(state.seconds)}.")

    def _failure(self, job: Job, how: str) -> JobFailed:
        path = job.work_dir / CONSOLE_FILE
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
        tail = "\n".join(f"    {line}" for line in lines)
        return JobFailed(
            f"{job.name} {how}. The end of its log:\n{tail}\n  The whole log: {path}\n"
            "  Once the cause is removed, the same command continues where it stopped."
        )

    def _close(self, name: str) -> None:
        running = self._running.pop(name)
        running.console.close()
        self._save_seconds(running.state)

    def _save_seconds(self, state: JobState) -> None:
        path = state.job.work_dir / IDENTITY_FILE
        identity = read_json(path)
        if identity is not None:
            write_json(path, {**identity, "seconds": state.seconds})

    def _stop_all(self) -> None:
        if not self._running:
            return
        # A second Ctrl-C while the children end must not leave any of them behind.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for running in self._running.values():
                _signal_group(running.process, signal.SIGINT)
            deadline = time.monotonic() + self.grace
            for running in self._running.values():
                try:
                    running.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass
                # Sent in any case: data loading workers may outlive their parent.
                _signal_group(running.process, signal.SIGKILL)
                running.process.wait()
                running.state.status = "stopped"
            for name in list(self._running):
                self._close(name)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _result(self, state: JobState) -> Result:
        metrics = _stored_metrics(state.job)
        if metrics is None:
            path = state.job.work_dir / RESULT_FILE
            raise JobFailed(f"{state.job.name}: {path} was removed while the demo was running.")
        return Result(metrics, state.seconds, state.job.checkpoint)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # The whole group has ended already.


def final_metrics(job: Job) -> dict[str, float] | None:
    """Return the validation figures at the end of a run, or ``None`` where there are none.

    They come from the training log, or from a separate evaluation of the last checkpoint, which
    left ``final/<any>/<any>.json`` in the work folder (as mmengine does for a test run). A command
    that ``writes_result`` left them in its ``result.json``.
    """
    if job.writes_result:
        stored = read_json(job.checkpoint)
        found = stored.get("metrics") if isinstance(stored, dict) else None
        numbers = _numbers(found) if isinstance(found, dict) else {}
        return numbers if numbers and (not job.metric or job.metric in numbers) else None
    row = read_log(job.work_dir).validation_at(job.length)
    if row is not None and _has(row, job.metric):
        return row
    for path in sorted((job.work_dir / EVALUATION_DIR).glob("*/*.json"), reverse=True):
        row = read_json(path)
        if isinstance(row, dict) and _has(row, job.metric):
            return {**_numbers(row), "step": float(job.length)}
    return None


def _stored_metrics(job: Job) -> dict[str, float] | None:
    """The figures of a finished run, ``None`` where it has not finished."""
    if job.writes_result:
        return final_metrics(job)
    stored = read_json(job.work_dir / RESULT_FILE)
    return None if stored is None else stored["metrics"]


def _has(row: Mapping[str, Any], metric: str) -> bool:
    """Whether a validation has a figure; with an empty name, any at all."""
    return metric in row if metric else any(key != "step" for key in _numbers(row))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if isinstance(value, int | float)}


def seconds_left(states: Iterable[JobState], slots: int, closing: float = 0.0) -> float | None:
    """Estimate the time until the last job is over.

    A running job is extrapolated from its own speed, one that has not begun from the speed of the
    others and its ``effort``; the rest of the queue is then played through with ``slots`` at once.

    Args:
        states: All jobs.
        slots: Jobs that run at once.
        closing: Seconds of work after the last job.

    Returns:
        Seconds, or ``None`` as long as no job has got far enough to tell.
    """
    states = [state for state in states if state.status != "failed"]
    left: dict[str, float] = {}
    rates: list[float] = []
    for state in states:
        gained = state.fraction - state.start_fraction
        if state.status == "finished":
            left[state.job.name] = 0.0
            rates.append(state.seconds / state.job.effort)
        elif state.status == "running" and gained > 0.01:
            whole = state.run_seconds / gained
            left[state.job.name] = whole * (1.0 - state.fraction)
            rates.append(whole / state.job.effort)
    if len(left) < len(states):
        if not rates:
            return None
        rate = sum(rates) / len(rates)
        for state in states:
            expected = rate * state.job.effort * (1.0 - state.fraction)
            # A job that has begun but logged nothing yet uses its time up, though never all of it.
            left.setdefault(state.job.name, max(expected - state.run_seconds, 0.2 * expected))
    return _play(states, left, slots) + closing


def _play(states: Sequence[JobState], left: Mapping[str, float], slots: int) -> float:
    ends = {state.job.name: 0.0 for state in states if state.status == "finished"}
    active = {s.job.name: left[s.job.name] for s in states if s.status == "running"}
    waiting = [s.job for s in states if s.status not in ("finished", "running")]
    jobs = [state.job for state in states]
    now = 0.0
    while active or waiting:
        for job in list(waiting):
            alone = job.exclusive or any(j.exclusive for j in jobs if j.name in active)
            room = not active if alone else len(active) < slots
            if room and all(name in ends for name in job.needs):
                active[job.name] = now + left[job.name]
                waiting.remove(job)
        if not active:
            break
        name = min(active, key=lambda name: active[name])
        now = active.pop(name)
        ends[name] = now
    return now


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return a hash of what decides the outcome of a run, for its ``signature``.

    Args:
        content: Settings of any depth. The order of keys does not count; what JSON does not know
            goes in as its text.

    Example:
        >>> fingerprint({"lr": 0.1, "seed": 0}) == fingerprint({"seed": 0, "lr": 0.1})
        True
        >>> fingerprint({"seed": 0}) == fingerprint({"seed": 1})
        False
    """
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def clock(seconds: float) -> str:
    """Return a duration for people.

    Example:
        >>> clock(9.4), clock(75), clock(3700)
        ('9 s', '1 min 15 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
