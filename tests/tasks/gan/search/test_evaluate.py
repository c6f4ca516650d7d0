from __future__ import annotations

import random
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")

from taskdistill.core.errors import CheckpointError, ConfigError  # noqa: E402
from taskdistill.tasks.gan.generate import build_model
from taskdistill.tasks.gan.search.evaluate import (  # noqa: E402
    SubnetEvaluator,
    load_supernet,
)
from taskdistill.tasks.gan.search.outcome import subnet_config  # noqa: E402

NARROW, WIDE = (4,) * 8, (8, 4, 4, 4, 4, 8, 8, 8)


def test_the_figures_are_those_of_the_plain_generator(supernet: Any):
    evaluate = SubnetEvaluator(supernet.config, supernet.checkpoint)
    for channels in (NARROW, WIDE):
        plain = build_model(subnet_config(evaluate.cfg, channels))
        thin = evaluate.model.generator.slice(channels)
        plain.generator.load_state_dict(thin.state_dict())
        errors = []
        with torch.no_grad():
            for batch in evaluate.loader:
                for sample in plain.val_step(batch):
                    errors.append((sample.fake.float() - sample.target.float()).abs().mean())
        figures = evaluate(channels)
        assert figures["SmallFD"] == pytest.approx(torch.stack(errors).mean().item(), rel=1e-3)
        assert figures["images"] == 5.0 and "note" not in figures
        assert all(type(value) is float for value in figures.values())


def test_a_figure_depends_on_the_configuration_alone(supernet: Any):
    evaluate = SubnetEvaluator(supernet.config, supernet.checkpoint)
    first = evaluate(NARROW)
    random.seed(1)
    state, expected = torch.get_rng_state(), random.Random(1).random()
    evaluate.model.train()
    other = evaluate(WIDE)
    assert evaluate(NARROW) == first != other
    assert torch.equal(torch.get_rng_state(), state) and random.random() == expected


@pytest.mark.parametrize(("limit", "seen"), [(1, (1, 0, 0)), (2, (2, 0, 2)), (9, (5, 0, 4))])
def test_a_limit_spreads_over_the_data(supernet: Any, limit: int, seen: tuple[int, ...]):
    figures = SubnetEvaluator(supernet.config, supernet.checkpoint, limit=limit)(NARROW)
    assert (figures["images"], figures["first"], figures["last"]) == seen


def test_a_preprocessor_at_the_top_of_the_config_is_the_models(supernet: Any):
    more = "\ndata_preprocessor = dict(type='TranslationPreprocessor')\n"
    _, model, sha256 = load_supernet(supernet.with_text("top.py", more=more), supernet.checkpoint)
    assert type(model.data_preprocessor).__name__ == "TranslationPreprocessor"
    assert len(sha256) == 64 and not model.training


def test_several_metrics(supernet: Any):
    several = ("dict(type=\"TinyDistance\")", "dict(metrics=[dict(type=\"TinyDistance\", prefix=\"a\")])")  # fmt: skip  # noqa: E501
    figures = SubnetEvaluator(supernet.with_text("m.py", several), supernet.checkpoint)(NARROW)
    assert "a/SmallFD" in figures


def test_what_cannot_be_searched_is_told(supernet: Any):
    with pytest.raises(ConfigError, match="found 'MobileResnetGenerator'"):
        SubnetEvaluator(supernet.teacher, supernet.checkpoint)
    with pytest.raises(ConfigError, match="does not exist"):
        SubnetEvaluator(supernet.config + "y", supernet.checkpoint)
    with pytest.raises(ConfigError, match="no val_evaluator"):
        SubnetEvaluator(
            supernet.with_text("none.py", more="\nval_evaluator = None\n"), supernet.checkpoint
        )
    with pytest.raises(ConfigError, match="empty"):
        SubnetEvaluator(
            supernet.with_text("empty.py", ('"TinyPairs"', '"TinyPairs", count=0')),
            supernet.checkpoint,
        )
    with pytest.raises(ConfigError, match="at least one image"):
        SubnetEvaluator(supernet.config, supernet.checkpoint, limit=0)
    with pytest.raises(CheckpointError, match="does not fit"):
        wider = supernet.with_text("wider.py", ("[[8, 4]] * 3", "[[12, 4]] * 3"))
        SubnetEvaluator(wider, supernet.checkpoint)
    with pytest.raises(ConfigError):
        SubnetEvaluator(supernet.config, supernet.checkpoint)((5,) * 8)
