from __future__ import annotations

import pytest
import torch

from taskdistill.core import tuning
from taskdistill.core.errors import ConfigError
from taskdistill.core.tuning import Setting, fastest, pinned, settings_for

CPU = torch.device("cpu")
PLAIN, HALF = Setting(), Setting("bf16")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that only what is timed moves on; returns how often each ran, too."""
    now, ran = [0.0], {}
    monkeypatch.setattr(tuning.time, "process_time", lambda: now[0])

    def taking(name: Setting, *seconds: float):
        def run() -> None:
            turn = ran[name] = ran.get(name, 0) + 1
            now[0] += seconds[min(turn, len(seconds)) - 1]

        return run

    return taking, ran


@pytest.mark.parametrize(
    ("plain", "half", "choice"),
    [(1.0, 0.5, HALF), (0.5, 1.0, PLAIN), (1.0, 0.85, PLAIN), (1.0, 0.8, HALF), (1.0, 1.0, PLAIN)],
)
def test_the_fastest_is_taken_if_it_is_so_by_a_margin(clock, plain, half, choice):
    taking, _ = clock
    runs = {PLAIN: taking(PLAIN, plain / 100), HALF: taking(HALF, half / 100)}
    assert fastest(runs)[0] == choice


def test_half_precision_has_to_be_faster_still(clock):
    taking, _ = clock
    layout = Setting("fp32", "channels_last")
    runs = {PLAIN: taking(PLAIN, 0.01), layout: taking(layout, 0.009), HALF: taking(HALF, 0.0085)}
    assert fastest(runs)[0] == layout


def test_a_slow_first_run_decides_nothing(clock):
    taking, _ = clock
    runs = {PLAIN: taking(PLAIN, 0.01), HALF: taking(HALF, 0.015, 0.005)}
    choice, seconds = fastest(runs)
    assert choice == HALF and seconds[HALF] == pytest.approx(0.005)


def test_what_is_hopeless_runs_once(clock):
    taking, ran = clock
    fastest({PLAIN: taking(PLAIN, 0.01), HALF: taking(HALF, 0.2)})
    assert ran[HALF] == 1 and ran[PLAIN] > 2


def test_a_large_network_is_not_measured_for_ever(clock):
    taking, ran = clock
    fastest({PLAIN: taking(PLAIN, 5.0), HALF: taking(HALF, 4.0)})
    assert ran == {PLAIN: 2, HALF: 2}


@pytest.mark.parametrize(
    ("precision", "layout", "has_maps", "expected"),
    [
        ("auto", "contiguous", True, [PLAIN, HALF]),
        ("fp32", "auto", True, [PLAIN, Setting("fp32", "channels_last")]),
        ("auto", "auto", False, [PLAIN, HALF]),
        ("fp16", "channels_last", True, [Setting("fp16", "channels_last")]),
        (None, "contiguous", True, [PLAIN]),
    ],
)
def test_what_is_pinned_leaves_no_choice(precision, layout, has_maps, expected):
    assert settings_for(precision, layout, CPU, has_maps) == expected


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_is_not_measured(monkeypatch, supported, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    device = torch.device("cuda")
    assert settings_for("auto", "auto", device, True) == [Setting(precision, "channels_last")]
    assert settings_for("auto", "auto", device, False) == [Setting(precision, "contiguous")]
    assert settings_for("fp32", "contiguous", device, True) == [PLAIN]


@pytest.mark.parametrize("text", ["bf16 channels_last", "bf16, channels-last"])
def test_the_environment_may_pin(monkeypatch, text):
    monkeypatch.setenv("TASKDISTILL_TEACHER", text)
    assert pinned() == Setting("bf16", "channels_last")
    monkeypatch.delenv("TASKDISTILL_TEACHER")
    assert pinned() is None


@pytest.mark.parametrize("text", ["bf16", "int8 contiguous", "fp32 sideways", "a b c"])
def test_an_environment_that_cannot_be_meant(monkeypatch, text):
    monkeypatch.setenv("TASKDISTILL_TEACHER", text)
    with pytest.raises(ConfigError, match="expected a precision"):
        pinned()
