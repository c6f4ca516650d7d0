"""What importing the package makes known to transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

from taskdistill.tasks.nlp.models import ib_bert


@pytest.mark.parametrize(
    "name",
    [
        "Model",
        "ModelForPreTraining",
        "ModelForMaskedLM",
        "ModelForNextSentencePrediction",
        "ModelForSequenceClassification",
        "ModelForTokenClassification",
        "ModelForQuestionAnswering",
    ],
)
def test_a_saved_model_loads_through_the_auto_class(
    name: str, small: Callable[..., Any], tmp_path: Path
) -> None:
    kind = getattr(ib_bert, f"IBBert{name}" if name == "Model" else f"IBBert{name[5:]}")
    model = kind(small("straight", classifier_activation=True)).eval()
    model.save_pretrained(tmp_path)
    again, info = getattr(transformers, f"Auto{name}").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert type(again) is kind
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))
    ids = torch.tensor([[2, 5, 3]])
    torch.testing.assert_close(again(ids).to_tuple(), model(ids).to_tuple())


def test_a_head_is_put_on_a_saved_network(small: Callable[..., Any], tmp_path: Path) -> None:
    model = ib_bert.IBBertForPreTraining(small("large"))
    model.save_pretrained(tmp_path)
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    torch.testing.assert_close(dict(tuned.ib_bert.state_dict()), dict(model.ib_bert.state_dict()))
    assert tuned.classifier.weight.shape == (3, 16)
    bare = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(dict(bare.state_dict()), dict(model.ib_bert.state_dict()))


def test_importing_it_again_is_no_error() -> None:
    importlib.reload(ib_bert)
    assert type(AutoConfig.for_model("ib_bert")) is ib_bert.IBBertConfig
