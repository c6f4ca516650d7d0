from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from taskdistill.core.errors import ConfigError
from taskdistill.core.losses import _backend, backend, kl_div, set_backend


def test_the_block_ends_with_the_backend_that_was_there():
    assert not _backend.plain()
    with backend("reference"):
        assert _backend.plain()
        with backend("eager"):
            assert not _backend.plain()
        assert _backend.plain()
    with pytest.raises(RuntimeError), backend("reference"):
        raise RuntimeError
    assert not _backend.plain()


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'compiled'"):
        set_backend("compile")  # type: ignore
    assert not _backend.plain()


def test_backward_keeps_what_forward_chose():
    student = torch.randn(3, 4, requires_grad=True)
    with backend("reference"):
        value = kl_div(student, torch.randn(3, 4))
    (grad,) = torch.autograd.grad(value, student, create_graph=True)
    assert grad.requires_grad


def test_a_body_that_cannot_be_compiled_is_computed_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: object, **__: object):
        def run(*_: object, **__: object):
            raise RuntimeError("no working C++ compiler\nlong traceback")

        return run

    monkeypatch.setattr(torch, "compile", refuse)

    def _double(tensor: Tensor) -> Tensor:
        return 2 * tensor

    body = _backend.compilable(_double)
    with backend("compiled"), caplog.at_level(logging.WARNING):
        assert body(torch.ones(2)).tolist() == [2.0, 2.0]
        assert body(torch.ones(1)).tolist() == [2.0]
    assert len(caplog.records) == 1
    assert "double could not be compiled" in caplog.text
    assert "no working C++ compiler" in caplog.text and "traceback" not in caplog.text


def test_an_error_of_the_body_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda body, **_: body)

    def _fail(tensor: Tensor) -> Tensor:
        raise ValueError("wrong input")

    with backend("compiled"), pytest.raises(ValueError, match="wrong input"):
        _backend.compilable(_fail)(torch.ones(1))


def test_the_body_is_compiled_once_and_only_when_asked(monkeypatch: pytest.MonkeyPatch):
    compiled: list[object] = []

    def compile(body, **_: object):
        compiled.append(body)
        return body

    monkeypatch.setattr(torch, "compile", compile)
    body = _backend.compilable(lambda tensor: tensor + 1)
    body(torch.ones(1))
    assert not compiled and not _backend.use_compiled()
    with backend("compiled"):
        assert _backend.use_compiled()
        body(torch.ones(1))
        body(torch.ones(2))
    assert len(compiled) == 1
