from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nlp_architectures import encoder, texts
from torch import Tensor, nn
from transformers import PreTrainedModel

from taskdistill.core.errors import ConfigError, ShapeError, TeacherError
from taskdistill.core.taps import Taps
from taskdistill.tasks.nlp.layers import encoder_layers
from taskdistill.tasks.nlp.outputs import (
    LAYERED,
    Reader,
    columns_of,
    count_positions,
    default_regions,
    example_inputs,
    position_weights,
    targets_of,
    token_mask,
    use_attention_maps,
)

SCORED = ("Bert", "DistilBert", "Roberta", "Electra", "Albert", "DebertaV2", "MobileBert", "IBBert")


def read(model: PreTrainedModel, *names: str, **batch: Tensor) -> tuple[dict[str, Any], Any]:
    """Outputs by name, and what forward returned (its maps and states among it)."""
    reader = Reader(model, names, "student")
    with torch.no_grad(), Taps(model, reader.reads).capture() as seen:
        output = model(**batch, output_hidden_states=True, output_attentions=True)
    return dict(reader.read(output, seen, batch.get("attention_mask"))), output


# -- one tensor a layer ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCORED)
def test_softmax_of_the_scores_is_the_models_attention(kind: str):
    model, batch = encoder(kind, attn_implementation="eager"), texts()
    found, output = read(model, "attention_scores", "attentions", **batch)
    padded, tokens = batch["attention_mask"][:, None, None] == 0, batch["attention_mask"] != 0
    assert len(found["attention_scores"]) == len(output.attentions) == 2
    layers = zip(found["attention_scores"], found["attentions"], output.attentions, strict=True)
    for scores, maps, own in layers:
        assert maps is own
        made = scores.masked_fill(padded, -torch.inf).softmax(-1)
        gap = (made - own).transpose(1, 2)[tokens].abs().max()
        assert gap < 1e-6
        assert scores.std() > 1e-3  # which uniform maps would pass


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "Electra", "DebertaV2",
                                  "MobileBert", "IBBert"])  # fmt: skip
def test_hidden_states_are_what_the_layers_return(kind: str):
    model, batch = encoder(kind), texts()
    _, layers = encoder_layers(model)
    seen: list[Tensor] = []
    for layer in layers:
        layer.register_forward_hook(
            lambda _m, _a, out: seen.append(out if isinstance(out, Tensor) else out[0])
        )
    found, output = read(model, "hidden_states", "embeddings", **batch)
    assert len(found["hidden_states"]) == 3
    assert found["embeddings"] is output.hidden_states[0]
    for state, made in zip(found["hidden_states"][1:], seen, strict=True):
        assert torch.equal(state, made)


def test_vectors_are_the_projections_by_head():
    model, batch = encoder("Bert"), texts()
    found, output = read(model, "queries", "keys", "values", "hidden_states", **batch)
    for index in range(2):
        state = output.hidden_states[index]
        attention: Any = model.get_submodule(f"bert.encoder.layer.{index}.attention.self")
        for kind, part in (("queries", "query"), ("keys", "key"), ("values", "value")):
            flat = getattr(attention, part)(state)
            vectors = found[kind][index]
            assert vectors.shape == (3, 2, 6, 4)
            assert torch.equal(vectors[:, 1], flat[..., 4:])


def test_maps_that_also_project_relative_positions():
    # As DeBERTa-v3: the keys' map is called for the tokens, then for the relative positions.
    model, batch = (
        encoder("DebertaV2", relative_attention=True, pos_att_type="c2p|p2c", share_att_key=True),
        texts(),
    )
    found, output = read(model, "keys", **batch)
    for index, keys in enumerate(found["keys"]):
        part: Any = model.get_submodule(f"deberta.encoder.layer.{index}.attention.self.key_proj")
        expected = part(output.hidden_states[index]).unflatten(2, (2, 4)).transpose(1, 2)
        assert torch.equal(keys, expected)


def test_shared_layers_give_one_tensor_a_call():
    found, _ = read(encoder("Albert"), "values", **texts())
    assert len(found["values"]) == 2
    assert not torch.equal(*found["values"])


# -- heads ----------------------------------------------------------------------------------------


def test_masked_language_logits_are_flat():
    found, output = read(encoder("Bert", "ForMaskedLM"), "logits", **texts())
    assert found["logits"].shape == (18, 50)
    assert torch.equal(found["logits"][6:12], output.logits[1])


@pytest.mark.parametrize("kind", ["Bert", "MobileBert", "IBBert"])
def test_pre_training_has_two_heads(kind: str):
    model = encoder(kind, "ForPreTraining")
    found, output = read(model, "logits", "seq_relationship_logits", **texts())
    assert torch.equal(found["logits"], output.prediction_logits.flatten(0, 1))
    assert found["seq_relationship_logits"] is output.seq_relationship_logits
    assert found["seq_relationship_logits"].shape == (3, 2)


@pytest.mark.parametrize("labels", [1, 3])
def test_classification_logits_are_as_they_are(labels: int):
    found, output = read(encoder("Bert", num_labels=labels), "logits", **texts())
    assert found["logits"] is output.logits
    assert found["logits"].shape == (3, labels)


def test_answers_are_never_in_the_padding():
    model, batch = encoder("Bert", "ForQuestionAnswering"), texts()
    found, output = read(model, "start_logits", "end_logits", **batch)
    mask = batch["attention_mask"]
    for name in ("start_logits", "end_logits"):
        shares = found[name].softmax(-1)
        assert (shares[mask == 0] == 0).all()
        assert torch.equal(shares[2], torch.eye(6)[0])  # one token: it is the answer
        assert torch.equal(found[name][mask == 1], output[name][mask == 1])
    plain, output = read(model, "start_logits", input_ids=batch["input_ids"])
    assert plain["start_logits"] is output.start_logits


def test_what_a_model_does_not_give_is_named():
    with pytest.raises(ConfigError, match=r"student \(BertModel\) gives no logits; it gives: last"):
        read(encoder("Bert", "Model"), "logits", **texts())
    with pytest.raises(ConfigError, match="gives no seq_relationship_logits; it gives: logits"):
        read(encoder("Bert"), "seq_relationship_logits", **texts())
    with pytest.raises(ConfigError, match="FNetForSequenceClassification.* returns no attentions"):
        reader = Reader(encoder("FNet"), ["attentions"], "student")
        with Taps(nn.Identity(), []).capture() as seen:
            reader.read({"attentions": None}, seen, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [("hiddenstates", "Did you mean 'hidden_states'"), ("loss", "There is no outputs.loss")],
)
def test_unknown_outputs(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        Reader(encoder("Bert"), [name], "student")


# -- scores that cannot be made -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("DebertaV2", dict(relative_attention=True), "adds relative positions"),
        ("ModernBert", {}, "turns them by position"),
    ],
)
def test_scores_of_relative_and_rotary_positions_are_refused(
    kind: str, changes: dict[str, Any], message: str
):
    model = encoder(kind, **changes)
    with pytest.raises(ConfigError, match=message):
        Reader(model, ["attention_scores"], "student")
    assert Reader(model, ["attentions"], "student").asks == {"output_attentions": True}


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("kind", ["RoFormer", "ConvBert"])
def test_scores_of_other_attention_are_refused(kind: str, spread: bool):
    model = encoder(kind)
    if not spread:  # weights as at the start of training, where scores are small
        for parameter in model.parameters():
            parameter.data *= 0.2
    reader = Reader(model, ["attention_scores"], "student")
    with pytest.raises(ConfigError, match=f"{kind}.* attends by more than their product"):
        reader.check_scores(model, _whole())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SCORED)
def test_scores_of_plain_attention_are_let_pass(kind: str, dtype: torch.dtype):
    model: Any = encoder(kind)
    model.to(dtype)
    before = model.config._attn_implementation
    Reader(model, ["attention_scores"], "student").check_scores(model, _whole())
    assert model.config._attn_implementation == before


def _whole() -> dict[str, Tensor]:
    batch = texts((6, 6))
    return {**batch, "labels": torch.zeros(2)}


# -- attention maps -------------------------------------------------------------------------------


def test_attention_is_switched_to_eager():
    model = encoder("Bert", attn_implementation="sdpa")
    assert use_attention_maps(model, "student") == "sdpa"
    assert model.config._attn_implementation == "eager"
    assert use_attention_maps(model, "student") is None
    assert read(model, "attentions", **texts())[0]["attentions"][0].shape == (3, 2, 6, 6)


def test_attention_that_cannot_be_switched():
    model: Any = nn.Identity()
    model.config = SimpleNamespace(_attn_implementation="flash_attention_2")
    model.set_attn_implementation = lambda name: None
    with pytest.raises(TeacherError, match="runs attn_implementation='flash_attention_2', which"):
        use_attention_maps(model, "teacher 'big'")
    assert use_attention_maps(nn.Identity(), "student") is None


# -- inputs and positions -------------------------------------------------------------------------


def test_inputs_are_those_of_the_model_without_the_truth():
    distil, bert = encoder("DistilBert"), encoder("Bert")
    assert "token_type_ids" not in columns_of(distil)
    batch: dict[str, Any] = dict.fromkeys(
        ("input_ids", "token_type_ids", "labels", "next_sentence_label", "other")
    )
    assert list(Reader(bert, ["logits"], "teacher").inputs(batch)) == [
        "input_ids",
        "token_type_ids",
    ]
    assert list(Reader(distil, ["logits"], "teacher").inputs(batch)) == ["input_ids"]


def test_example_fits_the_smallest_vocabulary():
    example = example_inputs([encoder("Bert"), encoder("Bert", vocab_size=7)])
    assert example["input_ids"].max() == 6
    assert example["input_ids"].shape == example["attention_mask"].shape == (2, 6)
    assert example["attention_mask"].sum() == 10


def test_default_regions():
    for token_level, logits in ((True, "labelled"), (False, "samples")):
        regions = default_regions(token_level)
        assert regions["logits"] == logits
        assert regions["start_logits"] == regions["seq_relationship_logits"] == "samples"
        assert {regions[name] for name in (*LAYERED, "embeddings")} == {"tokens"}


def test_positions_of_regions():
    batch = {**texts((3, 1)), "labels": torch.tensor([[-100, 5, 0], [4, -100, -100]])}
    found = position_weights(batch, ["tokens", "samples", "labelled"], token_level=True)
    assert found["tokens"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert found["samples"].tolist() == [1, 1]
    assert found["labelled"].tolist() == [[0, 1, 1], [1, 0, 0]]
    counts = count_positions([batch, batch], ["samples", "tokens", "labelled"], token_level=True)
    assert counts.tolist() == [4, 8, 6]


def test_regions_where_labels_are_one_a_sample():
    batch = {**texts((3, 1)), "labels": torch.tensor([2, -100])}
    found = position_weights(batch, ["labelled"], token_level=False)
    assert found["labelled"].tolist() == [1, 1]


def test_tokens_without_a_mask():
    ids, vectors = torch.ones(2, 3, dtype=torch.long), torch.zeros(2, 3, 8)
    for batch in ({"input_ids": ids}, {"inputs_embeds": vectors}):
        assert position_weights(batch, ["tokens"], token_level=False)["tokens"].sum() == 6


def test_positions_that_cannot_be_known():
    batch = texts((3, 1))
    with pytest.raises(ConfigError, match="Did you mean 'tokens'"):
        position_weights(batch, ["token"], token_level=False)
    with pytest.raises(ConfigError, match="'labelled' needs labels"):
        position_weights(batch, ["labelled"], token_level=True)
    with pytest.raises(ConfigError, match="needs input_ids or inputs_embeds"):
        position_weights({"labels": torch.ones(2)}, ["samples"], token_level=False)
    with pytest.raises(ShapeError, match=r"must be \(B, T\) .* got \(2, 1, 3, 3\)"):
        token_mask({"attention_mask": torch.ones(2, 1, 3, 3)})


def test_targets_are_laid_out_as_the_outputs():
    batch = dict(
        labels=torch.tensor([[1, 2], [3, -100]]),
        next_sentence_label=torch.tensor([[0], [1]]),
        start_positions=torch.tensor([4, 5]),
    )
    names = ["logits", "seq_relationship_logits", "start_logits", "end_logits", "hidden_states"]
    found = {name: value.tolist() for name, value in targets_of(batch, names).items()}
    assert found == {
        "logits": [1, 2, 3, -100],
        "seq_relationship_logits": [0, 1],
        "start_logits": [4, 5],
    }
