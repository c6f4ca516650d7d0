"""Where a student and its tokenizer come from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.nlp.arguments import ModelArguments
from taskdistill.tasks.nlp.build import build_model, build_tokenizer, load_trained
from taskdistill.tasks.nlp.data import DataArguments, Prepared, train_wordpiece

TEXTS = ["the cat sat on the mat", "the dog ate the cat", "a cat and a dog"]
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}
TOKENIZER = train_wordpiece(TEXTS, vocab_size=60)
DATA = DataArguments("classification", train_file="unread.tsv", max_length=16)


def prepared(*names: str, model_class: str = "AutoModelForSequenceClassification") -> Prepared:
    labels = {"num_labels": len(names), "id2label": dict(enumerate(names))}
    labels["label2id"] = {name: i for i, name in enumerate(names)}
    labels["problem_type"] = "single_label_classification"
    config = labels if names else {}
    return Prepared(model_class, config, None, None, None, dict, None, None, "accuracy", True, "")


NAMES = prepared("negative", "positive")


def bert(**changes: Any) -> BertConfig:
    return BertConfig(**{**SMALL, "vocab_size": len(TOKENIZER), **changes})


def build(wanted: Prepared = NAMES, distill: dict[str, Any] | None = None, **arguments: Any):
    return build_model(ModelArguments(**arguments), DATA, wanted, TOKENIZER, distill)


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A masked language model with its tokenizer."""
    BertForMaskedLM(bert()).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def tuned(tmp_path: Path) -> str:
    """A classifier of negative and positive."""
    config = bert(id2label=NAMES.config["id2label"], label2id=NAMES.config["label2id"])
    BertForSequenceClassification(config).save_pretrained(tmp_path / "tuned")
    return str(tmp_path / "tuned")


# -- models ----------------------------------------------------------------------------------------


def test_from_scratch_takes_labels_and_vocabulary_from_the_data():
    model = build(model_config={"model_type": "bert", **SMALL}, attn_implementation="eager")
    assert isinstance(model, BertForSequenceClassification)
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config.pad_token_id == TOKENIZER.pad_token_id
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.problem_type == "single_label_classification"
    assert model.config._attn_implementation == "eager"
    larger = build(model_config={"model_type": "bert", **SMALL, "vocab_size": 64})
    assert larger.config.vocab_size == 64


def test_pretrained_weights_are_taken_and_a_new_head_is_told(
    base: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "taskdistill"):
        model = build(model=base)
    wanted = BertForMaskedLM.from_pretrained(base).bert.encoder.state_dict()
    for key, value in model.bert.encoder.state_dict().items():
        torch.testing.assert_close(value, wanted[key])
    assert "begin anew" in caplog.text and "classifier.weight" in caplog.text
    assert "LOAD REPORT" not in caplog.text


def test_another_number_of_labels_gets_a_new_head(tuned: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "taskdistill"):
        model = build(prepared("a", "b", "c"), model=tuned)
    assert model.classifier.out_features == 3 and model.config.num_labels == 3
    assert "it has 2 labels and the data 3" in caplog.text


def test_the_same_labels_keep_the_head(tuned: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "taskdistill"):
        model = build(model=tuned)
    saved = AutoModelForSequenceClassification.from_pretrained(tuned)
    torch.testing.assert_close(model.classifier.weight, saved.classifier.weight)
    assert "begin anew" not in caplog.text


def test_training_is_in_float32_whatever_was_saved(tmp_path: Path):
    BertForMaskedLM(bert()).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert build(model=str(tmp_path / "half")).dtype == torch.float32


def test_a_student_from_layers_of_a_teacher(base: str):
    entry = {"teacher": base, "layers": [1], "hidden_dropout_prob": 0.0}
    model = build(model_from_teacher=entry)
    wanted = BertForMaskedLM.from_pretrained(base).bert.encoder.layer[1].output.dense.weight
    torch.testing.assert_close(model.bert.encoder.layer[0].output.dense.weight, wanted)
    assert model.config.num_hidden_layers == 1 and model.config.hidden_dropout_prob == 0.0
    assert entry["teacher"] == base


def test_the_teacher_to_start_from_is_the_one_learnt_from(base: str):
    model = build(distill={"teacher": base}, model_from_teacher={"layers": "first"})
    assert model.config.num_hidden_layers == 1


def test_something_to_train_has_to_be_named():
    with pytest.raises(ConfigError, match="what to train: give model"):
        build()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "brt"}, "model_type 'brt'.*Did you mean 'bert'"),
        ({}, "model_type None"),
        ({"model_type": "bert", "hiden_size": 8}, "no 'hiden_size'. Did you mean 'hidden_size'"),
        ({"model_type": "bert", "hidden_size": "8"}, "makes no 'bert' model(.|\\n)*expected int"),
        ({"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}, "multiple"),
    ],
)
def test_configs_from_scratch_that_cannot_be_meant(config: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        build(model_config={**({} if "hidden_size" in config else SMALL), **config})


def test_weights_of_another_kind_of_network_are_refused(tmp_path: Path):
    BertModel(bert()).save_pretrained(tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(CheckpointError, match="lacks 16 weights.*encoder.layer.2"):
        build(model=str(tmp_path / "a"))


def test_a_model_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(CheckpointError, match="neither a folder with a config.json nor"):
        build(model=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="neither a folder"):
        build(model="some/name-that-nobody-has")


def test_samples_have_to_fit_positions_and_vocabulary(tmp_path: Path):
    small = {"model_type": "bert", **SMALL}
    with pytest.raises(ConfigError, match="max_length=16 is more than the 8 positions"):
        build(model_config={**small, "max_position_embeddings": 8})
    with pytest.raises(ConfigError, match=f"has {len(TOKENIZER)} tokens, the model 9"):
        build(model_config={**small, "vocab_size": 9})
    # RoBERTa's first position is behind the padding's.
    roberta = {**SMALL, "vocab_size": 99, "max_position_embeddings": 17, "pad_token_id": 1}
    RobertaForMaskedLM(RobertaConfig(**roberta)).save_pretrained(tmp_path / "r")
    with pytest.raises(ConfigError, match="more than the 15 positions"):
        build(model=str(tmp_path / "r"))


# -- trained models --------------------------------------------------------------------------------


def test_a_trained_model_has_to_be_whole(base: str, tuned: str):
    assert load_trained(tuned, NAMES).config.num_labels == 2
    with pytest.raises(CheckpointError, match="lacks .* weights .*classifier"):
        load_trained(base, NAMES)


def test_a_trained_model_has_to_be_for_these_labels(tuned: str, caplog: pytest.LogCaptureFixture):
    with pytest.raises(CheckpointError, match="it has 2 labels and the data 3"):
        load_trained(tuned, prepared("a", "b", "c"))
    other = prepared("positive", "negative")
    with pytest.raises(CheckpointError, match="in the order .*'negative', 'positive'"):
        load_trained(tuned, other)
    with caplog.at_level(logging.INFO, "taskdistill"):
        build(other, model=tuned)
    assert "in the order" in caplog.text


# -- tokenizers ------------------------------------------------------------------------------------


def test_the_tokenizer_lies_beside_the_model_or_the_teacher(base: str):
    distill = {"teacher": base}
    for arguments, learnt in (
        (ModelArguments(model=base), None),
        (ModelArguments(tokenizer=base), None),
        (ModelArguments(model_from_teacher={"teacher": base}), None),
        (ModelArguments(model_config={"model_type": "bert"}), distill),
    ):
        tokenizer = build_tokenizer(arguments, DATA, learnt)
        assert tokenizer.get_vocab() == TOKENIZER.get_vocab()


def test_a_vocabulary_from_a_file_or_from_the_texts(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Cat", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    arguments = ModelArguments(vocab_file=str(tmp_path / "vocab.txt"), lowercase=False)
    assert build_tokenizer(arguments, DATA).tokenize("Cat cat") == ["Cat", "cat"]
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"{t}\t0\n" for t in TEXTS))
    data = DataArguments("classification", train_file=str(tmp_path / "train.tsv"))
    trained = build_tokenizer(ModelArguments(vocab_size=60), data)
    assert trained.get_vocab() == TOKENIZER.get_vocab()


def test_a_tokenizer_that_is_not_there_is_told(tuned: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="where the tokenizer comes from"):
        build_tokenizer(ModelArguments(model_config={"model_type": "bert"}), DATA)
    with pytest.raises(CheckpointError, match="a model but no vocabulary beside it"):
        build_tokenizer(ModelArguments(model=tuned), DATA)
    with pytest.raises(CheckpointError, match="no tokenizer under"):
        build_tokenizer(ModelArguments(tokenizer=str(tmp_path / "absent")), DATA)
