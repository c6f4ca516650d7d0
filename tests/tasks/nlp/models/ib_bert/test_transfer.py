"""What goes from teacher to student before the blocks are learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, MobileBertConfig, MobileBertForPreTraining

from taskdistill.core.errors import TeacherError
from taskdistill.tasks.nlp.models.ib_bert import (
    IBBertConfig,
    IBBertForPreTraining,
    IBBertForSequenceClassification,
    IBBertModel,
    copy_embeddings_and_head,
)

Small = Callable[..., IBBertConfig]

EMBEDDINGS = [
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "embedding_transformation.weight",
    "embedding_transformation.bias",
]
HEAD = [
    "cls.predictions.bias",
    "cls.predictions.transform.dense.weight",
    "cls.predictions.transform.dense.bias",
    "cls.predictions.transform.LayerNorm.weight",
    "cls.predictions.transform.LayerNorm.bias",
    "cls.predictions.dense.weight",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
]


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def student_of(kind: str, config: IBBertConfig) -> Any:
    if kind == "ib_bert":
        return IBBertForPreTraining(config)
    return MobileBertForPreTraining(
        MobileBertConfig(**{**config.to_dict(), "model_type": "mobilebert"})
    )


@pytest.mark.parametrize("kind", ["ib_bert", "mobilebert"])
@pytest.mark.parametrize("across_norms", [False, True])
def test_embeddings_and_head_alone_are_copied(
    kind: str, across_norms: bool, small: Small, scramble: Any
) -> None:
    teacher = scramble(IBBertForPreTraining(small("large", intra_bottleneck_size=32)))
    student = student_of(kind, small("mobilebert"))
    before = snapshot(student)
    copied = copy_embeddings_and_head(student, teacher, across_norms=across_norms)

    norm = ["LayerNorm.weight", "LayerNorm.bias"] if across_norms else []
    assert sorted(copied) == sorted([f"{kind}.embeddings.{n}" for n in [*EMBEDDINGS, *norm]] + HEAD)
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        source = theirs.get(name.replace("mobilebert.", "ib_bert."))
        expected = source if name in copied or ".decoder." in name else before[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert student.cls.predictions.decoder.weight is student.get_input_embeddings().weight


def test_norms_of_one_kind_and_the_pooler_are_copied(small: Small, scramble: Any) -> None:
    teacher = scramble(IBBertModel(small("large")))
    student = IBBertModel(
        small("straight", normalization_type="layer_norm", classifier_activation=True)
    )
    copied = copy_embeddings_and_head(student, teacher)
    assert copied == [
        *(f"embeddings.{name}" for name in [*EMBEDDINGS, "LayerNorm.weight", "LayerNorm.bias"]),
        "pooler.dense.weight",
        "pooler.dense.bias",
    ]


def test_a_bare_network_takes_from_one_with_a_head(small: Small, scramble: Any) -> None:
    teacher = scramble(IBBertForSequenceClassification(small("large", num_labels=3)))
    bare = IBBertModel(small("mobilebert"))
    assert copy_embeddings_and_head(bare, teacher) == [f"embeddings.{name}" for name in EMBEDDINGS]
    same = IBBertForSequenceClassification(small("mobilebert", num_labels=3))
    assert copy_embeddings_and_head(same, teacher)[-2:] == ["classifier.weight", "classifier.bias"]
    fewer = IBBertForSequenceClassification(small("mobilebert", num_labels=2))
    assert "classifier.weight" not in copy_embeddings_and_head(fewer, teacher)


def test_a_tied_student_stays_tied_to_the_words_of_an_untied_teacher(
    small: Small, scramble: Any
) -> None:
    teacher = scramble(IBBertForPreTraining(small("large", tie_word_embeddings=False)))
    student = IBBertForPreTraining(small("mobilebert"))
    copy_embeddings_and_head(student, teacher)
    words = teacher.get_input_embeddings().weight
    assert not torch.equal(words, teacher.cls.predictions.decoder.weight)
    torch.testing.assert_close(student.cls.predictions.decoder.weight, words, rtol=0, atol=0)


def test_nothing_fits(small: Small) -> None:
    student = IBBertModel(small("mobilebert"), add_pooling_layer=False)
    teacher = BertModel(
        BertConfig(
            vocab_size=31,
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
    )
    with pytest.raises(TeacherError, match="Nothing outside the encoder of BertModel fits"):
        copy_embeddings_and_head(student, teacher)
