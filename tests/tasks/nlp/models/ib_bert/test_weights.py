"""Google's names there and back, transformers' names, and files that do not fit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import MobileBertConfig, MobileBertForPreTraining

from taskdistill.core.errors import CheckpointError
from taskdistill.tasks.nlp.models.ib_bert import (
    IBBertConfig,
    IBBertForMaskedLM,
    IBBertForPreTraining,
    IBBertForQuestionAnswering,
    IBBertForSequenceClassification,
    IBBertModel,
    from_google,
    from_mobilebert,
    load_original,
)

Small = Callable[..., IBBertConfig]


def google_variables(model: Any, scope: str = "") -> dict[str, np.ndarray]:
    """The variables that Google's code would have saved of this model, optimizer included."""
    fake = model.config.normalization_type == "no_norm"
    variables: dict[str, np.ndarray] = {"global_step": np.array(7, dtype=np.int64)}
    for name, value in model.state_dict().items():
        if ".decoder." in name:  # tied
            continue
        array = value.numpy().copy()
        module, _, kind = name.rpartition(".")
        path = module.replace(model.base_model_prefix, "bert").replace(".", "/")
        path = re.sub(r"/layer/(\d+)", r"/layer_\1", path)
        path = re.sub(r"/ffn/(\d+)", r"/ffn_layer_\1", path)
        if "LayerNorm" in path:
            # The norm before the output layer is a layer norm in every model.
            path = (
                path if path.startswith("cls") or not fake else path.replace("Layer", "FakeLayer")
            )
            path = path.replace("/FakeLayer_", "/layer_")
            variable = f"{path}/{'gamma' if kind == 'weight' else 'beta'}"
        elif "_embeddings" in path:
            variable = path
        elif path == "cls/predictions/dense":
            variable, array = "cls/predictions/extra_output_weights", array.T.copy()
        elif path == "cls/predictions":
            variable = "cls/predictions/output_bias"
        elif path == "cls/seq_relationship":
            variable = f"{path}/output_{'weights' if kind == 'weight' else 'bias'}"
        elif path == "qa_outputs":
            variable = f"cls/squad/output_{'weights' if kind == 'weight' else 'bias'}"
        elif path == "classifier":
            variable = f"output_{'weights' if kind == 'weight' else 'bias'}"
        elif kind == "weight":
            variable, array = f"{path}/kernel", array.T.copy()
        else:
            variable = f"{path}/bias"
        variables[scope + variable] = array
        if not scope:
            variables[f"{variable}/adam_m"] = np.zeros_like(array)
            variables[f"{variable}/adam_v"] = np.zeros_like(array)
    return variables


def save(variables: dict[str, np.ndarray], path: Path) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **variables)  # pyright: ignore[reportArgumentType]
    else:
        save_file({name: torch.as_tensor(value) for name, value in variables.items()}, path)
    return path


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


def test_names_of_the_release() -> None:
    # Written out by hand: a mistake in google_variables above would not show otherwise.
    ones = np.ones((2, 3), np.float32)
    state = from_google(
        {
            "bert/embeddings/word_embeddings": ones,
            "bert/embeddings/token_type_embeddings": ones,
            "bert/embeddings/position_embeddings:0": ones,
            "bert/embeddings/embedding_transformation/kernel": ones,
            "bert/embeddings/FakeLayerNorm/beta": ones[0],
            "bert/encoder/layer_11/attention/self/query/kernel": ones,
            "bert/encoder/layer_11/attention/output/FakeLayerNorm/gamma": ones[0],
            "bert/encoder/layer_11/bottleneck/input/dense/bias": ones[0],
            "bert/encoder/layer_11/bottleneck/attention/FakeLayerNorm/gamma": ones[0],
            "bert/encoder/layer_11/ffn_layer_2/intermediate/dense/kernel": ones,
            "bert/encoder/layer_11/ffn_layer_2/output/LayerNorm/beta": ones[0],
            "bert/encoder/layer_11/output/bottleneck/dense/kernel": ones,
            "bert/pooler/dense/kernel": ones,
            "cls/predictions/transform/dense/kernel": ones,
            "cls/predictions/transform/LayerNorm/gamma": ones[0],
            "cls/predictions/output_bias": ones[0],
            "cls/predictions/extra_output_weights": ones,
            "cls/seq_relationship/output_weights": ones,
            "cls/seq_relationship/output_bias": ones[0],
            "cls/squad/output_weights": ones,
            "output_weights": ones,
            "output_bias": ones[0],
        }
    )
    layer = "ib_bert.encoder.layer.11."
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "ib_bert.embeddings.word_embeddings.weight": (2, 3),
        "ib_bert.embeddings.token_type_embeddings.weight": (2, 3),
        "ib_bert.embeddings.position_embeddings.weight": (2, 3),
        "ib_bert.embeddings.embedding_transformation.weight": (3, 2),
        "ib_bert.embeddings.LayerNorm.bias": (3,),
        f"{layer}attention.self.query.weight": (3, 2),
        f"{layer}attention.output.LayerNorm.weight": (3,),
        f"{layer}bottleneck.input.dense.bias": (3,),
        f"{layer}bottleneck.attention.LayerNorm.weight": (3,),
        f"{layer}ffn.2.intermediate.dense.weight": (3, 2),
        f"{layer}ffn.2.output.LayerNorm.bias": (3,),
        f"{layer}output.bottleneck.dense.weight": (3, 2),
        "ib_bert.pooler.dense.weight": (3, 2),
        "cls.predictions.transform.dense.weight": (3, 2),
        "cls.predictions.transform.LayerNorm.weight": (3,),
        "cls.predictions.bias": (3,),
        "cls.predictions.decoder.bias": (3,),
        "cls.predictions.decoder.weight": (2, 3),
        "cls.predictions.dense.weight": (3, 2),
        "cls.seq_relationship.weight": (2, 3),
        "cls.seq_relationship.bias": (3,),
        "qa_outputs.weight": (2, 3),
        "classifier.weight": (2, 3),
        "classifier.bias": (3,),
    }


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("variant", ["large", "mobilebert", "straight", "tiny"])
def test_google_s_names_round_trip(
    variant: str, suffix: str, small: Small, scramble: Any, tmp_path: Path
) -> None:
    saved = scramble(IBBertForPreTraining(small(variant)))
    path = save(google_variables(saved), tmp_path / f"mobilebert{suffix}")
    loaded = IBBertForPreTraining(small(variant))
    digest = load_original(loaded, path)
    assert_same(loaded, saved)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.cls.predictions.decoder.weight is loaded.get_input_embeddings().weight


def test_google_s_names_fit_mobilebert_of_transformers(
    small: Small, scramble: Any, tmp_path: Path
) -> None:
    fields = small("mobilebert").to_dict()
    del fields["model_type"], fields["transformers_version"]
    saved = scramble(MobileBertForPreTraining(MobileBertConfig(**fields)))
    variables = google_variables(saved)
    loaded = MobileBertForPreTraining(MobileBertConfig(**fields))
    loaded.load_state_dict(from_google(variables, prefix="mobilebert"))
    assert_same(loaded, saved)
    ours = IBBertForPreTraining(small("mobilebert"))
    load_original(ours, save(variables, tmp_path / "mobilebert.npz"))
    ids = torch.tensor([[2, 7, 9, 3]])
    torch.testing.assert_close(
        ours.eval()(ids).prediction_logits, saved(ids).prediction_logits, rtol=0, atol=1e-6
    )


def test_heads_that_a_model_lacks_are_left_out(small: Small, scramble: Any, tmp_path: Path) -> None:
    saved = scramble(IBBertForPreTraining(small("large")))
    path = save(google_variables(saved), tmp_path / "teacher.npz")
    bare = IBBertModel(small("large"))
    load_original(bare, path)
    assert_same(bare, saved.ib_bert)
    words = IBBertForMaskedLM(small("large"))  # no pooler, no next sentence
    load_original(words, path)
    assert_same(words.cls.predictions, saved.cls.predictions)
    tuned = IBBertForSequenceClassification(small("large"))
    with pytest.raises(CheckpointError, match=r"missing \(2\): classifier.weight"):
        load_original(tuned, path)
    load_original(tuned.base_model, path)  # pyright: ignore[reportArgumentType]
    assert_same(tuned.ib_bert, saved.ib_bert)


@pytest.mark.parametrize("kind", [IBBertForSequenceClassification, IBBertForQuestionAnswering])
def test_fine_tuned_heads(kind: Any, small: Small, scramble: Any, tmp_path: Path) -> None:
    saved = scramble(kind(small("large", num_labels=2)))
    loaded = kind(small("large", num_labels=2))
    load_original(loaded, save(google_variables(saved), tmp_path / "tuned.npz"))
    assert_same(loaded, saved)


def test_the_teacher_inside_a_distillation_checkpoint(
    small: Small, scramble: Any, tmp_path: Path
) -> None:
    student = scramble(IBBertForPreTraining(small("mobilebert")))
    teacher = scramble(IBBertForPreTraining(small("large")))
    variables = google_variables(student) | google_variables(teacher, scope="teacher/")
    variables["hidden_distill_0/LayerNorm/gamma"] = np.ones(16, np.float32)
    for saved, scope in ((student, ""), (teacher, "teacher")):
        assert set(from_google(variables, scope=scope)) == set(saved.state_dict())
    path = save(variables, tmp_path / "distilled.npz")
    for saved, scope in ((student, ""), (teacher, "teacher")):
        loaded = IBBertForPreTraining(saved.config)
        load_original(loaded, path, scope=scope)
        assert_same(loaded, saved)


def test_no_network_among_the_variables() -> None:
    with pytest.raises(CheckpointError, match="No variable bert/... is among the 1 given"):
        from_google({"global_step": np.zeros(1)})
    with pytest.raises(CheckpointError, match="No variable teacher/bert/..."):
        from_google({"bert/pooler/dense/bias": np.zeros(1)}, scope="teacher")


@pytest.mark.parametrize("head", [True, False])
def test_a_mobilebert_of_transformers(
    head: bool, small: Small, scramble: Any, tmp_path: Path
) -> None:
    config = MobileBertConfig(**{**small("mobilebert").to_dict(), "model_type": "mobilebert"})
    saved = scramble(MobileBertForPreTraining(config))
    source = saved if head else saved.mobilebert
    source.save_pretrained(tmp_path)
    bare = IBBertModel(small("mobilebert"))
    load_original(bare, tmp_path / "model.safetensors")
    assert_same(bare, saved.mobilebert)
    if head:
        ours = IBBertForPreTraining(small("mobilebert"))
        load_original(ours, tmp_path / "model.safetensors")
        state = saved.state_dict()
        # Old versions saved the positions as well.
        state["mobilebert.embeddings.position_ids"] = torch.arange(12)[None]
        again = IBBertForPreTraining(small("mobilebert"))
        again.load_state_dict(from_mobilebert(state))
        torch.save(state, tmp_path / "pytorch_model.bin")
        third = IBBertForPreTraining(small("mobilebert"))
        load_original(third, tmp_path / "pytorch_model.bin")
        assert_same(again, ours)
        assert_same(third, ours)
        assert_same(ours.ib_bert, saved.mobilebert)


def test_straight_attention_cannot_take_shared_weights(
    small: Small, scramble: Any, tmp_path: Path
) -> None:
    saved = scramble(IBBertForPreTraining(small("mobilebert")))
    path = save(google_variables(saved), tmp_path / "mobilebert.npz")
    model = IBBertForPreTraining(small("straight"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_original(model, path)
    message = str(caught.value)
    assert "unexpected (12): ib_bert.encoder.layer.0.bottleneck.attention.dense" in message
    assert "other shape (6)" in message
    assert "self.query.weight (model (8, 16), file (8, 8))" in message
    assert "missing" not in message
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_pooler_of_the_file_is_not_dropped_in_silence(
    small: Small, scramble: Any, tmp_path: Path
) -> None:
    saved = scramble(IBBertForPreTraining(small("large")))
    path = save(google_variables(saved), tmp_path / "teacher.npz")
    with pytest.raises(CheckpointError, match=r"unexpected \(2\): ib_bert.pooler.dense"):
        load_original(IBBertForPreTraining(small("large", classifier_activation=False)), path)


@pytest.mark.parametrize("name", ["torn.npz", "torn.safetensors", "torn.pt"])
def test_damaged_files(name: str, small: Small, tmp_path: Path) -> None:
    model = IBBertModel(small("large"))
    with pytest.raises(CheckpointError, match="does not exist"):
        load_original(model, tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CheckpointError, match="torn"):
        load_original(model, tmp_path / name)


def test_nothing_is_unpickled(small: Small, tmp_path: Path) -> None:
    model = IBBertModel(small("large"))
    np.savez(tmp_path / "objects.npz", **{"bert/x": np.array([Path("a")], dtype=object)})  # pyright: ignore
    with pytest.raises(CheckpointError, match="plain arrays"):
        load_original(model, tmp_path / "objects.npz")


def test_a_file_of_something_else(small: Small, tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no state dict of tensors"):
        load_original(IBBertModel(small("large")), tmp_path / "other.pt")


def test_tensors_are_taken_as_they_are() -> None:
    kernel: Tensor = torch.arange(6.0).view(2, 3)
    state = from_google({"bert/pooler/dense/kernel": kernel}, prefix="")
    torch.testing.assert_close(state["pooler.dense.weight"], kernel.t())
