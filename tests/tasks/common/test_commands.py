from __future__ import annotations

import argparse
import os
import signal

import pytest

from taskdistill.tasks.common.commands import make_console, positive, stop_as_by_ctrl_c


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "three", "٣x"])
def test_numbers_that_are_not_positive(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a positive number"):
        positive(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_from_outside_is_as_ctrl_c(number: signal.Signals):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stop_as_by_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_who_asked_to_survive_the_terminal_does():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop_as_by_ctrl_c()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_where_nobody_watches_lines_have_one_width():
    console = make_console()
    assert not console.is_terminal and console.width == 120
