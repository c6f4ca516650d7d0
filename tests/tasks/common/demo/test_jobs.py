from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich")

from taskdistill.core.errors import ConfigError, DistillError
from taskdistill.tasks.common.demo.jobs import (
    Job,
    JobFailed,
    JobQueue,
    JobState,
    clock,
    seconds_left,
)
from taskdistill.tasks.common.files import exclusive

FAKE = Path(__file__).with_name("fake_train.py")


class Recorder:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.most_running = 0
        self.fractions: list[float] = []

    def update(self, states: Sequence[JobState], seconds_left: float | None) -> None:
        running = [state for state in states if state.status == "running"]
        self.most_running = max(self.most_running, len(running))
        self.fractions.append(states[0].fraction)

    def note(self, text: str) -> None:
        self.notes.append(text)


def make_job(root: Path, name: str, *options: str, needs: tuple[str, ...] = ()) -> Job:
    work_dir = root / name
    journal = ("--journal", str(root / "journal"))
    return Job(
        name=name,
        command=(sys.executable, str(FAKE), str(work_dir), *journal, *options),
        work_dir=work_dir,
        length=3,
        checkpoint=work_dir / "epoch_3.pth",
        metric="quality",
        signature="one",
        needs=needs,
    )


def run(jobs: Sequence[Job], slots: int = 2, cores: int = 4, **options):
    display = Recorder()
    queue = JobQueue(jobs, slots, cores, display, poll=0.02, grace=2.0, **options)
    return queue.run(), display


def journal(root: Path) -> list[str]:
    return (root / "journal").read_text().splitlines()


def test_order_slots_and_results(tmp_path):
    jobs = [
        make_job(tmp_path, "teacher", "--seconds", "0.15"),
        make_job(tmp_path, "alone", "--seconds", "0.15"),
        make_job(tmp_path, "distilled", needs=("teacher",)),
    ]
    results, display = run(jobs)
    lines = journal(tmp_path)
    position = {tuple(line.split()[:2]): i for i, line in enumerate(lines)}
    assert position["start", "distilled"] > position["end", "teacher"]
    assert position["start", "alone"] < position["end", "teacher"]
    assert display.most_running == 2
    assert results["distilled"].metrics["quality"] == pytest.approx(0.3)
    assert results["teacher"].checkpoint.is_file()
    assert results["teacher"].seconds > 0
    assert display.fractions[-1] == 1.0


def test_one_slot_runs_one_at_a_time_on_all_cores(tmp_path):
    jobs = [make_job(tmp_path, name, "--seconds", "0.05") for name in ("a", "b")]
    _, display = run(jobs, slots=1)
    assert display.most_running == 1
    assert journal(tmp_path) == ["start a 4", "end a 4", "start b 4", "end b 4"]


def test_cores_are_shared_by_what_starts_together(tmp_path):
    run([make_job(tmp_path, name) for name in ("a", "b")], cores=4)
    assert sorted(journal(tmp_path)) == ["end a 2", "end b 2", "start a 2", "start b 2"]


def test_an_exclusive_job_runs_alone_on_all_cores(tmp_path):
    teacher = replace(make_job(tmp_path, "teacher", "--seconds", "0.1"), exclusive=True)
    _, display = run([make_job(tmp_path, "a"), teacher, make_job(tmp_path, "b")])
    assert journal(tmp_path)[:2] == ["start teacher 4", "end teacher 4"]
    assert sorted(journal(tmp_path)[2:]) == ["end a 2", "end b 2", "start a 2", "start b 2"]


def test_finished_jobs_are_not_run_again(tmp_path):
    jobs = [make_job(tmp_path, "teacher"), make_job(tmp_path, "distilled", needs=("teacher",))]
    first, _ = run(jobs)
    before = journal(tmp_path)
    second, display = run(jobs)
    assert journal(tmp_path) == before
    assert second == first
    assert display.notes == ["teacher: already finished.", "distilled: already finished."]


def test_failure_shows_the_log_and_stops_the_others(tmp_path):
    jobs = [
        make_job(tmp_path, "slow", "--hang-at", "1"),
        make_job(tmp_path, "bad", "--fail-at", "2", "--seconds", "0.3"),
        make_job(tmp_path, "later", needs=("bad",)),
    ]
    begun = time.monotonic()
    with pytest.raises(JobFailed, match="bad ended with 3") as caught:
        run(jobs)
    assert "ValueError: the trouble is here" in str(caught.value)
    assert str(tmp_path / "bad" / "console.log") in str(caught.value)
    assert time.monotonic() - begun < 20
    assert not any("later" in line for line in journal(tmp_path))
    assert not processes_of(tmp_path)


def test_continues_after_a_failure(tmp_path):
    bad = make_job(tmp_path, "bad", "--fail-at", "3")
    with pytest.raises(JobFailed):
        run([bad])
    results, _ = run([replace(bad, command=bad.command[:-2])])
    assert results["bad"].metrics["quality"] == pytest.approx(0.3)
    second_run = tmp_path / "bad" / "20240101_000001" / "vis_data" / "scalars.json"
    assert json.loads(second_run.read_text().splitlines()[0])["epoch"] == 3


def test_a_missing_program_is_reported(tmp_path):
    job = replace(make_job(tmp_path, "a"), command=("no-such-program",))
    with pytest.raises(JobFailed, match="could not be started: no-such-program"):
        run([job])


def test_a_changed_signature_starts_afresh_with_what_depends_on_it(tmp_path):
    jobs = [
        make_job(tmp_path, "teacher"),
        make_job(tmp_path, "alone"),
        make_job(tmp_path, "distilled", needs=("teacher",)),
    ]
    run(jobs)
    _, display = run([replace(jobs[0], signature="two"), *jobs[1:]])
    starts = [line.split()[1] for line in journal(tmp_path) if line.startswith("start")]
    assert starts[3:] == ["teacher", "distilled"]
    assert "alone: already finished." in display.notes


def test_a_lost_checkpoint_is_trained_again(tmp_path):
    jobs = [make_job(tmp_path, "a")]
    run(jobs)
    (tmp_path / "a" / "epoch_3.pth").unlink()
    (tmp_path / "a" / "last_checkpoint").write_text("2")
    results, _ = run(jobs)
    assert results["a"].checkpoint.is_file()


def test_foreign_files_are_left_alone(tmp_path):
    job = make_job(tmp_path, "a")
    job.work_dir.mkdir()
    (job.work_dir / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="holds files that no demo made"):
        run([job])
    assert (job.work_dir / "thesis.tex").read_text() == "precious"


def test_the_last_validation_is_made_up_for(tmp_path):
    job = make_job(tmp_path, "a", "--skip-last-validation")
    with pytest.raises(JobFailed, match="without a validation at 3"):
        run([job])
    job = replace(job, evaluate=(*job.command, "--evaluate"))
    results, _ = run([job])
    assert results["a"].metrics["quality"] == pytest.approx(0.3)
    assert results["a"].metrics["step"] == 3


@pytest.mark.parametrize("deaf", [False, True])
def test_ctrl_c_stops_the_children_and_the_next_run_continues(tmp_path, deaf):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(FAKE.parent)!r})
        from pathlib import Path
        from test_jobs import make_job, run
        options = ["--hang-at", "2"] + ["--deaf"] * {deaf}
        try:
            run([make_job(Path({str(tmp_path)!r}), "a", *options)])
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    wait_for(lambda: (tmp_path / "a" / "epoch_1.pth").exists() and "[2][4/4]" in console(tmp_path))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    assert not processes_of(tmp_path)

    results, display = run([make_job(tmp_path, "a")])
    assert results["a"].metrics["quality"] == pytest.approx(0.3)
    assert "continues" in display.notes[0]
    assert results["a"].seconds > 0.05


def test_two_demos_cannot_share_a_folder(tmp_path):
    with exclusive(tmp_path):
        with pytest.raises(DistillError, match=f"in use by another run .process {os.getpid()}"):
            with exclusive(tmp_path):
                pass
    with exclusive(tmp_path):
        pass


def test_children_keep_the_lock_of_a_killed_demo(tmp_path):
    with exclusive(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=[lock])
    try:
        with pytest.raises(DistillError, match="left behind"):
            with exclusive(tmp_path):
                pass
    finally:
        child.communicate(b"\n")
    with exclusive(tmp_path):
        pass


def test_bad_queues_are_refused(tmp_path):
    job = make_job(tmp_path, "teacher")
    with pytest.raises(ConfigError, match="Two jobs are called 'teacher'"):
        JobQueue([job, job], 1, 1, Recorder())
    with pytest.raises(ConfigError, match="needs 'teecher'.*mean 'teacher'"):
        JobQueue([job, make_job(tmp_path, "b", needs=("teecher",))], 1, 1, Recorder())
    with pytest.raises(ConfigError, match="at least one slot"):
        JobQueue([job], 0, 1, Recorder())


def refreshed(job: Job) -> tuple[float, str]:
    state = JobState(job)
    state.refresh()
    return state.fraction, state.position


def test_position_without_progress_in_the_console_comes_from_the_log(tmp_path):
    job = replace(make_job(tmp_path, "a"), length=8)
    assert refreshed(job) == (0.0, "")
    job.work_dir.mkdir()
    rows = [{"step": n, "epoch": n / 4, "loss": 1.0} for n in range(1, 10)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (job.work_dir / "scalars.jsonl").write_text(text)
    assert refreshed(job) == (2.25 / 8, "epoch 3/8")
    (job.work_dir / "scalars.jsonl").write_text(text.replace('"epoch": 2.25', '"epoch": 8.0'))
    assert refreshed(job) == (1.0, "epoch 8/8")
    # Iterations cannot be told from epochs; and what mmengine prints is as good as ever.
    assert refreshed(replace(job, unit="iteration")) == (0.0, "")
    (job.work_dir / "console.log").write_text("Epoch(train)  [3][2/4]  lr: 1.0e-01\n")
    assert refreshed(job) == (2.5 / 8, "epoch 3/8")


def test_seconds_left_plays_the_queue_through(tmp_path):
    teacher, alone = make_job(tmp_path, "teacher"), make_job(tmp_path, "alone")
    distilled = make_job(tmp_path, "distilled", needs=("teacher",))
    running = [
        JobState(replace(teacher, effort=2.0), "running", fraction=0.5, run_seconds=100.0),
        JobState(alone, "running", fraction=0.5, run_seconds=50.0),
        JobState(replace(distilled, effort=1.5)),
    ]
    # 100 s for the teacher's second half, then 1.5 times what one unit of effort takes (100 s).
    assert seconds_left(running, slots=2, closing=5.0) == pytest.approx(100 + 150 + 5)
    assert seconds_left([JobState(teacher)], slots=1) is None
    finished = [JobState(teacher, "finished", fraction=1.0, seconds=100.0)]
    assert seconds_left(finished, slots=1) == 0.0


def test_seconds_left_shrinks_before_the_first_log_line(tmp_path):
    known = JobState(make_job(tmp_path, "a"), "finished", fraction=1.0, seconds=100.0)
    silent = JobState(make_job(tmp_path, "b"), "running", run_seconds=30.0)
    assert seconds_left([known, silent], slots=1) == pytest.approx(70.0)
    silent.run_seconds = 1000.0
    assert seconds_left([known, silent], slots=1) == pytest.approx(20.0)


def test_seconds_left_of_a_continued_job_counts_only_what_this_process_did(tmp_path):
    state = JobState(make_job(tmp_path, "a"), "running", 0.75, 0.5, 500.0, 25.0)
    assert seconds_left([state], slots=1) == pytest.approx(25.0)


def test_clock():
    assert [clock(s) for s in (0.2, 59.6, 3599, 7200)] == [
        "0 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 0 min",
    ]


def console(root: Path) -> str:
    return (root / "a" / "console.log").read_text()


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def processes_of(root: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if f"{root}/" in line and "fake" in line]


# -- a queue that goes on, as comparisons use it ---------------------------------------------------


def test_the_others_go_on_when_one_fails(tmp_path):
    jobs = [
        make_job(tmp_path, "bad", "--fail-at", "2"),
        make_job(tmp_path, "later", needs=("bad",)),
        replace(make_job(tmp_path, "lost"), command=("no-such-program",)),
        make_job(tmp_path, "good", "--seconds", "0.1"),
        make_job(tmp_path, "after", needs=("good",)),
    ]
    display = Recorder()
    queue = JobQueue(jobs, 2, 4, display, poll=0.02, keep_going=True)
    results = queue.run()
    assert set(results) == {"good", "after"}
    assert set(queue.failures) == {"bad", "later", "lost"}
    assert "ValueError: the trouble is here" in str(queue.failures["bad"])
    assert str(queue.failures["later"]) == "later needs bad, which failed."
    assert "could not be started: no-such-program" in str(queue.failures["lost"])
    assert not any("later" in line for line in journal(tmp_path))
    assert any(note.startswith("bad: failed; the others go on") for note in display.notes)
    # Repaired, it continues, and what it kept from starting runs too.
    jobs = [make_job(tmp_path, job.name, needs=job.needs) for job in jobs]
    results, _ = run(jobs)
    assert set(results) == {"bad", "later", "lost", "good", "after"}


def test_a_failed_job_takes_no_more_time():
    def state(name: str, status: str, **values) -> JobState:
        return JobState(make_job(Path("x"), name), status, **values)

    running = state("a", "running", fraction=0.5, run_seconds=10.0)
    assert seconds_left([running, state("b", "failed")], 1) == pytest.approx(10.0)


def test_any_figure_will_do_without_a_metric(tmp_path):
    job = replace(make_job(tmp_path, "a"), metric="")
    results, _ = run([job])
    assert results["a"].metrics["quality"] == pytest.approx(0.3)
    skipping = replace(make_job(tmp_path, "b", "--skip-last-validation"), metric="")
    with pytest.raises(JobFailed, match="without a validation at 3"):
        run([skipping])


def test_a_command_that_writes_the_result_itself(tmp_path):
    work_dir = tmp_path / "tool"
    text = '{"metrics": {"quality": 0.5, "name": "x"}, "table": [1]}'
    code = f"import pathlib; pathlib.Path({str(work_dir / 'result.json')!r}).write_text({text!r})"
    job = replace(
        make_job(tmp_path, "tool"),
        command=(sys.executable, "-c", code),
        checkpoint=work_dir / "result.json",
    )
    results, _ = run([job])
    assert results["tool"].metrics == {"quality": 0.5}
    assert json.loads((work_dir / "result.json").read_text())["table"] == [1]
    _, display = run([job])
    assert display.notes == ["tool: already finished."]
    (work_dir / "result.json").unlink()
    with pytest.raises(JobFailed, match="without the figures it was to write to"):
        run([replace(job, command=(sys.executable, "-c", "print('nothing')"))])
