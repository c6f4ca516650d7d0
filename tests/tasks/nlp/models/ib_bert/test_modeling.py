"""Sizes, equality with transformers' MobileBERT where that runs, and what it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import MobileBertConfig, MobileBertModel

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.nlp.models import ib_bert
from taskdistill.tasks.nlp.models.ib_bert import (
    IBBertConfig,
    IBBertForMaskedLM,
    IBBertForNextSentencePrediction,
    IBBertForPreTraining,
    IBBertForQuestionAnswering,
    IBBertForSequenceClassification,
    IBBertForTokenClassification,
    IBBertModel,
    from_mobilebert,
)

Small = Callable[..., IBBertConfig]
Scramble = Callable[[nn.Module], Any]

HEADS = (
    "ForMaskedLM",
    "ForNextSentencePrediction",
    "ForPreTraining",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
LOGITS = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits")


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def mobilebert_config(config: IBBertConfig) -> MobileBertConfig:
    """The same shape as transformers' class, which knows no straight attention."""
    fields = config.to_dict()
    del fields["model_type"], fields["transformers_version"]
    return MobileBertConfig(**fields)


def mobilebert_twin(ours: IBBertModel, attention: str) -> MobileBertModel:
    twin = MobileBertModel._from_config(
        mobilebert_config(ours.config), attn_implementation=attention
    )
    twin.load_state_dict(ours.state_dict())
    return twin.eval()


@pytest.mark.parametrize(
    ("config", "layer", "total"),
    [
        (IBBertConfig.large(), 12_076_544, 294_205_184),
        (IBBertConfig.mobilebert(), 842_240, 24_581_888),
        (IBBertConfig.mobilebert_straight(), 874_624, 25_359_104),
        (IBBertConfig.mobilebert_tiny(), 463_232, 15_485_696),
    ],
)
def test_published_sizes(config: IBBertConfig, layer: int, total: int) -> None:
    with torch.device("meta"):
        model = IBBertModel(config, add_pooling_layer=False)
    assert size(model.embeddings) == 4_368_128
    assert {size(one) for one in model.encoder.layer} == {layer}
    assert size(model) == total


def test_published_sizes_with_the_pooler() -> None:
    with torch.device("meta"):
        teacher = IBBertModel(IBBertConfig.large())
        student = IBBertModel(IBBertConfig.mobilebert(classifier_activation=True))
        released = IBBertModel(IBBertConfig.mobilebert())
        theirs = MobileBertModel(MobileBertConfig())
    assert size(teacher) == 294_467_840
    assert size(student) == size(theirs) == 24_844_544
    assert size(released) == 24_581_888  # its pooler is the first token alone


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("mobilebert", {}),
        ("mobilebert", dict(trigram_input=False, classifier_activation=True)),
        ("tiny", {}),
        # One epsilon everywhere; with another, transformers uses two.
        ("tiny", dict(normalization_type="layer_norm", layer_norm_eps=1e-5, hidden_act="gelu")),
        ("large", dict(use_bottleneck=False, layer_norm_eps=1e-5)),
    ],
)
def test_equals_mobilebert_of_transformers(
    small: Small,
    scramble: Scramble,
    batch: dict[str, Tensor],
    variant: str,
    changes: dict[str, Any],
    attention: str,
) -> None:
    config = small(variant, **changes)
    ours = scramble(IBBertModel._from_config(config, attn_implementation=attention))
    theirs = mobilebert_twin(ours, attention)
    flags = dict(output_hidden_states=True, output_attentions=attention == "eager")
    a, b = ours(**batch, **flags), theirs(**batch, **flags)
    torch.testing.assert_close(a.last_hidden_state, b.last_hidden_state, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.pooler_output, b.pooler_output, rtol=0, atol=1e-6)
    assert len(a.hidden_states) == config.num_hidden_layers + 1
    torch.testing.assert_close(a.hidden_states, b.hidden_states, rtol=0, atol=1e-6)
    if attention == "eager":
        assert len(a.attentions) == config.num_hidden_layers
        torch.testing.assert_close(a.attentions, b.attentions, rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_heads_equal_those_of_transformers(
    small: Small, scramble: Scramble, batch: dict[str, Tensor], head: str
) -> None:
    config = small("mobilebert", num_labels=2)
    theirs = scramble(getattr(transformers, f"MobileBert{head}")(mobilebert_config(config)))
    ours = getattr(ib_bert, f"IBBert{head}")(config).eval()
    ours.load_state_dict(from_mobilebert(theirs.state_dict()))
    a, b = ours(**batch), theirs(**batch)
    found = [name for name in LOGITS if name in b]
    assert found
    for name in found:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6)


def test_straight_attention_is_shared_attention_whose_bottleneck_is_folded_in(
    small: Small, scramble: Scramble, batch: dict[str, Tensor]
) -> None:
    # Without its norm, the shared bottleneck is one more linear map in front of query and key.
    shared = scramble(IBBertModel(small("mobilebert")))
    straight = IBBertModel(small("straight")).eval()
    straight.load_state_dict(
        {name: v for name, v in shared.state_dict().items() if "self." not in name}, strict=False
    )
    with torch.no_grad():
        for theirs, ours in zip(shared.encoder.layer, straight.encoder.layer, strict=True):
            bottleneck = theirs.bottleneck.attention
            scale, shift = bottleneck.LayerNorm.weight, bottleneck.LayerNorm.bias
            weight = scale[:, None] * bottleneck.dense.weight
            bias = scale * bottleneck.dense.bias + shift
            for name in ("query", "key"):
                inner = getattr(theirs.attention.self, name)
                outer = getattr(ours.attention.self, name)
                outer.weight.copy_(inner.weight @ weight)
                outer.bias.copy_(inner.weight @ bias + inner.bias)
            ours.attention.self.value.load_state_dict(theirs.attention.self.value.state_dict())
    torch.testing.assert_close(
        straight(**batch).last_hidden_state,
        shared(**batch).last_hidden_state,
        rtol=1e-5,
        atol=1e-5,
    )


def test_every_layer_norm_has_the_epsilon_of_the_config(small: Small) -> None:
    model = IBBertForPreTraining(small("large", layer_norm_eps=1e-3))
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 1 + 3 * 4 + 1
    assert {norm.eps for norm in norms} == {1e-3}


@pytest.mark.parametrize("variant", ["large", "straight"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(
    small: Small, scramble: Scramble, batch: dict[str, Tensor], variant: str, attention: str
) -> None:
    model = IBBertModel._from_config(
        # The trigram input sees a neighbouring pad, as it does in the original.
        small(variant, trigram_input=False),
        attn_implementation=attention,
    )
    scramble(model)
    padded = model(**batch).last_hidden_state
    alone = model(batch["input_ids"][1:, :4], token_type_ids=batch["token_type_ids"][1:, :4])
    torch.testing.assert_close(padded[1:, :4], alone.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_eager_and_sdpa_agree_on_straight_attention(
    small: Small, scramble: Scramble, batch: dict[str, Tensor]
) -> None:
    eager = scramble(IBBertModel._from_config(small("large"), attn_implementation="eager"))
    sdpa = IBBertModel._from_config(small("large"), attn_implementation="sdpa").eval()
    sdpa.load_state_dict(eager.state_dict())
    valid = batch["attention_mask"].bool()
    a, b = eager(**batch, output_attentions=True), sdpa(**batch)
    torch.testing.assert_close(a.last_hidden_state[valid], b.last_hidden_state[valid])
    # Probabilities: of the 4 real tokens each, and none of the pads.
    torch.testing.assert_close(a.attentions[0].sum(-1), torch.ones(2, 2, 7))
    assert a.attentions[0][1, :, :, 4:].abs().max() == 0


def test_embeddings_in_place_of_words_and_positions_given(
    small: Small, scramble: Scramble, batch: dict[str, Tensor]
) -> None:
    model = scramble(IBBertModel(small("large")))
    ids = batch.pop("input_ids")
    expected = model(ids, **batch).last_hidden_state
    embeds = model.get_input_embeddings()(ids)
    positions = torch.arange(7)[None]
    given = model(inputs_embeds=embeds, position_ids=positions, **batch).last_hidden_state
    torch.testing.assert_close(given, expected)
    moved = model(ids, position_ids=positions + 1, **batch).last_hidden_state
    assert not torch.allclose(moved, expected)


@pytest.mark.parametrize("variant", ["large", "mobilebert", "straight", "tiny"])
def test_a_text_of_one_token(small: Small, variant: str) -> None:
    model = IBBertModel(small(variant)).eval()
    out = model(torch.tensor([[3]]), output_hidden_states=True)
    assert out.last_hidden_state.shape == (1, 1, 16)
    assert out.last_hidden_state.isfinite().all()


def test_gradient_checkpointing_gives_the_same_gradients(
    small: Small, scramble: Scramble, batch: dict[str, Tensor]
) -> None:
    model = scramble(IBBertForPreTraining(small("large"))).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        assert model.ib_bert.encoder.layer[0].gradient_checkpointing is checkpointing
        model.zero_grad()
        labels = dict(labels=batch["input_ids"], next_sentence_label=torch.tensor([0, 1]))
        model(**batch, **labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())


def test_compiles_into_one_graph(
    small: Small, scramble: Scramble, batch: dict[str, Tensor]
) -> None:
    model = scramble(IBBertForSequenceClassification(small("large")))
    expected = model(**batch).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).logits, expected)


def test_output_layer_is_tied_and_grows_with_the_vocabulary(small: Small, tmp_path: Path) -> None:
    for kind in (IBBertForPreTraining, IBBertForMaskedLM):
        model = kind(small("large"))
        model.resize_token_embeddings(33)
        head = model.cls.predictions
        assert head.decoder.weight is model.ib_bert.embeddings.word_embeddings.weight
        assert (head.decoder.weight.shape, head.dense.weight.shape) == ((33, 6), (10, 33))
        assert head.bias.shape == head.decoder.bias.shape == (33,)
        model.save_pretrained(tmp_path / kind.__name__)
        again = kind.from_pretrained(tmp_path / kind.__name__)
        head = again.cls.predictions
        assert head.decoder.weight is again.ib_bert.embeddings.word_embeddings.weight
        assert head.decoder.bias is head.bias
        torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))
        logits = again(torch.tensor([[32, 3]]))[0]
        assert logits.shape == (1, 2, 33)


def test_masked_word_loss_leaves_out_what_is_not_masked(
    small: Small, scramble: Scramble, batch: dict[str, Tensor]
) -> None:
    model = scramble(IBBertForMaskedLM(small("straight")))
    labels = torch.full((2, 7), -100)
    labels[0, 2] = 5
    out = model(**batch, labels=labels)
    torch.testing.assert_close(out.loss, -out.logits[0, 2].log_softmax(-1)[5])


def test_classification_losses(small: Small, scramble: Scramble, batch: dict[str, Tensor]) -> None:
    number = scramble(IBBertForSequenceClassification(small("large", num_labels=1)))
    out = number(**batch, labels=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(
        out.loss, (out.logits[:, 0] - torch.tensor([0.5, 2.0])).square().mean()
    )
    one = scramble(IBBertForSequenceClassification(small("large", num_labels=3)))
    out = one(**batch, labels=torch.tensor([2, 0]))
    torch.testing.assert_close(out.loss, -out.logits.log_softmax(-1)[[0, 1], [2, 0]].mean())
    some = scramble(IBBertForSequenceClassification(small("large", num_labels=3)))
    labels = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    out = some(**batch, labels=labels)
    signed = out.logits * (2 * labels - 1)
    torch.testing.assert_close(out.loss, -nn.functional.logsigmoid(signed).mean())


def test_other_heads_learn(small: Small, batch: dict[str, Tensor]) -> None:
    cases = {
        IBBertForNextSentencePrediction: dict(labels=torch.tensor([0, 1])),
        IBBertForTokenClassification: dict(labels=batch["input_ids"] % 2),
        IBBertForQuestionAnswering: dict(
            start_positions=torch.tensor([1, 0]), end_positions=torch.tensor([2, 3])
        ),
    }
    for kind, labels in cases.items():
        model = kind(small("large"))
        model(**batch, **labels).loss.backward()
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        assert unused == []


@pytest.mark.parametrize("kind", [IBBertForSequenceClassification, IBBertForTokenClassification])
def test_classifier_dropout(kind: Any, small: Small) -> None:
    assert kind(small("large", hidden_dropout_prob=0.3)).dropout.p == 0.3
    assert kind(small("large", hidden_dropout_prob=0.3, classifier_dropout=0.0)).dropout.p == 0.0


def test_fields_set_after_the_config_was_made_are_checked(small: Small) -> None:
    config = small("large")
    config.num_attention_heads = 3
    with pytest.raises(ConfigError, match="cannot be divided"):
        IBBertModel(config)
