"""Time and memory of the losses against the formulation one would write first.

    python benchmarks/losses.py --rounds 20

Both sides run forward and backward, alternating in one process, so that a busy machine slows both.
The time ratio is the median over the rounds; the peak is what the allocator handed out above the
inputs, in multiples of the student tensor. A ratio above 1 is in favour of taskdistill.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from taskdistill.core import losses

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]
    ours: Loss
    naive: Loss


def naive_kl(student: Tensor, teacher: Tensor, temperature: float, classes: int) -> Tensor:
    log_s = F.log_softmax(student.movedim(1, -1).reshape(-1, classes) / temperature, dim=1)
    p_t = F.softmax(teacher.movedim(1, -1).reshape(-1, classes) / temperature, dim=1)
    return F.kl_div(log_s, p_t, reduction="batchmean") * temperature**2


def naive_sigmoid_kl(student: Tensor, teacher: Tensor) -> Tensor:
    p_t = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, p_t, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, p_t, reduction="none")
    return (cross - entropy).sum(1).mean()


def naive_edges(student: Tensor, teacher: Tensor) -> Tensor:
    return naive_kl(student.reshape(-1, 17), teacher.reshape(-1, 17), 10.0, 17)


def naive_soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    weights = torch.ones_like(student[:1])
    weights[:, 0] = 1.5
    return -(weights * F.softmax(teacher, 1) * F.log_softmax(student, 1)).sum(1).mean()


def naive_bounded(student: Tensor, teacher: Tensor) -> Tensor:
    target = torch.zeros_like(student)
    student_error = ((student - target) ** 2).sum(1)
    teacher_error = ((teacher - target) ** 2).sum(1)
    return (student_error * (student_error > teacher_error).float()).mean()


def masked(loss: Callable[..., Tensor]) -> Loss:
    """Imitate within a fixed mask of about half of the positions."""

    def within(student: Tensor, teacher: Tensor) -> Tensor:
        rows = torch.arange(student.shape[-1], device=student.device) % 2
        return loss(student, teacher, rows.expand(len(student), *student.shape[2:]).float())

    return within


def naive_masked(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    squares = ((student - teacher) ** 2).mean(1) * mask
    return squares.sum() / mask.sum()


CASES = [
    Case(
        "kl_div, classes",
        (4096, 1000),
        lambda s, t: losses.kl_div(s, t, temperature=4.0),
        lambda s, t: naive_kl(s, t, 4.0, 1000),
    ),
    Case(
        "kl_div, map",
        (8, 19, 128, 128),
        lambda s, t: losses.kl_div(s, t, temperature=4.0),
        lambda s, t: naive_kl(s, t, 4.0, 19),
    ),
    Case(
        "kl_div, sigmoid",
        (20000, 80),
        lambda s, t: losses.kl_div(s, t, activation="sigmoid"),
        naive_sigmoid_kl,
    ),
    Case("localization_distillation", (20000, 68), losses.localization_distillation, naive_edges),
    Case("feature_imitation", (8, 256, 32, 32), losses.feature_imitation, F.mse_loss),
    Case(
        "feature_imitation, mask",
        (8, 256, 32, 32),
        masked(lambda s, t, mask: losses.feature_imitation(s, t, mask=mask)),
        masked(naive_masked),
    ),
    Case("hint", (8, 256, 32, 32), losses.hint, lambda s, t: 0.5 * ((s - t) ** 2).mean()),
    Case(
        "weighted_soft_cross_entropy",
        (20000, 81),
        losses.weighted_soft_cross_entropy,
        naive_soft_cross_entropy,
    ),
    Case(
        "bounded_regression",
        (200000, 4),
        lambda s, t: losses.bounded_regression(s, t, torch.zeros_like(s)),
        naive_bounded,
    ),
]


def step(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    student.grad = None
    loss(student, teacher).backward()


def seconds(loss: Loss, student: Tensor, teacher: Tensor) -> float:
    if student.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, student, teacher)
    if student.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(loss: Loss, student: Tensor, teacher: Tensor) -> int:
    """Highest number of bytes allocated at one time during a step, the inputs not counted."""
    student.grad = None
    if student.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, student, teacher)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(loss, student, teacher)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    level = peak = 0
    for event in memory:
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak


def measure(case: Case, rounds: int, device: str) -> str:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(case.shape, generator=generator) for _ in range(2))
    student, teacher = student.to(device).requires_grad_(), teacher.to(device)
    torch.testing.assert_close(
        case.ours(student, teacher), case.naive(student, teacher), rtol=1e-3, atol=1e-5
    )
    for loss in (case.ours, case.naive):
        step(loss, student, teacher)
    ours: list[float] = []
    naive: list[float] = []
    for _ in range(rounds):
        ours.append(seconds(case.ours, student, teacher))
        naive.append(seconds(case.naive, student, teacher))
    ratio = statistics.median(b / a for a, b in zip(ours, naive, strict=True))
    size = student.numel() * student.element_size()
    peaks = [peak_bytes(loss, student, teacher) / size for loss in (case.ours, case.naive)]
    shape = "x".join(map(str, case.shape))
    return (
        f"{case.name:28} {shape:14} {1e3 * statistics.median(ours):9.2f} {ratio:7.2f} "
        f"{peaks[0]:9.2f} {peaks[1] / peaks[0]:7.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--rounds", type=int, default=10, help="pairs of runs a loss (10)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    print(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} thread(s), "
        f"{arguments.rounds} rounds, forward and backward"
    )
    print(f"{'loss':28} {'shape':14} {'ours ms':>9} {'x time':>7} {'peak/size':>9} {'x peak':>7}")
    for case in CASES:
        if arguments.only in case.name:
            print(measure(case, arguments.rounds, arguments.device), flush=True)


if __name__ == "__main__":
    main()
