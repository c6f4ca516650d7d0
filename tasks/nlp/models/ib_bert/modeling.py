"""IB-BERT, as what differs from transformers' MobileBERT.

Forward passes, heads and parameter names are MobileBERT's; the modules below change

- the width of queries and keys where they read the block's input (straight attention), and
- the epsilon of two layer norms (of the embeddings and of a block's output), for which
  transformers takes torch's default of 1e-5 instead of ``config.layer_norm_eps``. Google's code has
  1e-12 throughout.

Google's code lets padded keys into the softmax with a score of -6; here as in transformers they
are masked out.
"""

from __future__ import annotations

from torch import nn
from transformers.models.mobilebert.modeling_mobilebert import (
    MobileBertEmbeddings,
    MobileBertEncoder,
    MobileBertForMaskedLM,
    MobileBertForNextSentencePrediction,
    MobileBertForPreTraining,
    MobileBertForQuestionAnswering,
    MobileBertForSequenceClassification,
    MobileBertForTokenClassification,
    MobileBertLayer,
    MobileBertModel,
    MobileBertOnlyMLMHead,
    MobileBertOnlyNSPHead,
    MobileBertPooler,
    MobileBertPreTrainedModel,
    MobileBertPreTrainingHeads,
)

from .configuration import IBBertConfig

__all__ = [
    "IBBertForMaskedLM",
    "IBBertForNextSentencePrediction",
    "IBBertForPreTraining",
    "IBBertForQuestionAnswering",
    "IBBertForSequenceClassification",
    "IBBertForTokenClassification",
    "IBBertModel",
    "IBBertPreTrainedModel",
]

_TIED = {
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "cls.predictions.decoder.weight": "ib_bert.embeddings.word_embeddings.weight",
}


class IBBertEmbeddings(MobileBertEmbeddings):
    """Words, their neighbours, positions and segments."""

    def __init__(self, config: IBBertConfig) -> None:
        super().__init__(config)
        _set_eps(self.LayerNorm, config)


class IBBertLayer(MobileBertLayer):
    """One block; its attention may be straight."""

    def __init__(self, config: IBBertConfig) -> None:
        super().__init__(config)
        _set_eps(self.output.LayerNorm, config)
        if config.straight_attention:
            attention = self.attention.self
            attention.query = nn.Linear(config.hidden_size, attention.all_head_size)
            attention.key = nn.Linear(config.hidden_size, attention.all_head_size)


class IBBertEncoder(MobileBertEncoder):
    """The blocks."""

    def __init__(self, config: IBBertConfig) -> None:
        nn.Module.__init__(self)  # MobileBERT's own blocks are not wanted, and large
        self.layer = nn.ModuleList(IBBertLayer(config) for _ in range(config.num_hidden_layers))


class IBBertPreTrainedModel(MobileBertPreTrainedModel):
    """Base of the models: saving, loading, initialisation."""

    config_class = IBBertConfig
    base_model_prefix = "ib_bert"
    ib_bert: nn.Module

    @property
    def mobilebert(self) -> nn.Module:
        """The network under the head, by the name that MobileBERT's forward passes look for."""
        return self.ib_bert


class IBBertModel(IBBertPreTrainedModel, MobileBertModel):
    """The network without a head.

    Called as :class:`transformers.MobileBertModel` is: ``input_ids`` or ``inputs_embeds``,
    ``attention_mask``, ``token_type_ids``, ``position_ids``, ``output_hidden_states``,
    ``output_attentions`` (with ``attn_implementation="eager"``). Hidden states are
    (batch, tokens, ``hidden_size``), the first that of the embeddings; attentions are probabilities
    (batch, heads, tokens, tokens), dropout included while training.

    Args:
        config: The shape.
        add_pooling_layer: Whether there is a pooled output.

    Raises:
        ConfigError: If the config's fields do not go together.

    Reference:
        Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
        ACL 2020, https://arxiv.org/abs/2004.02984

    Example:
        >>> import torch
        >>> config = IBBertConfig(vocab_size=99, num_hidden_layers=2, intermediate_size=64)
        >>> model = IBBertModel(config).eval()
        >>> out = model(torch.tensor([[2, 7, 3]]), output_hidden_states=True)
        >>> out.last_hidden_state.shape, len(out.hidden_states)
        (torch.Size([1, 3, 512]), 3)
    """

    def __init__(self, config: IBBertConfig, add_pooling_layer: bool = True) -> None:
        config.check()
        super(MobileBertModel, self).__init__(config)
        self.gradient_checkpointing = False
        self.embeddings = IBBertEmbeddings(config)
        self.encoder = IBBertEncoder(config)
        self.pooler = MobileBertPooler(config) if add_pooling_layer else None
        self.post_init()


# The constructors below go past MobileBERT's own (super of it), which would build its network.


class IBBertForPreTraining(IBBertPreTrainedModel, MobileBertForPreTraining):
    """Masked words and the next sentence: as :class:`transformers.MobileBertForPreTraining`."""

    _tied_weights_keys = _TIED

    def __init__(self, config: IBBertConfig) -> None:
        super(MobileBertForPreTraining, self).__init__(config)
        self.ib_bert = IBBertModel(config)
        self.cls = MobileBertPreTrainingHeads(config)
        self.post_init()


class IBBertForMaskedLM(IBBertPreTrainedModel, MobileBertForMaskedLM):
    """Masked words: as :class:`transformers.MobileBertForMaskedLM`."""

    _tied_weights_keys = _TIED

    def __init__(self, config: IBBertConfig) -> None:
        super(MobileBertForMaskedLM, self).__init__(config)
        self.ib_bert = IBBertModel(config, add_pooling_layer=False)
        self.cls = MobileBertOnlyMLMHead(config)
        self.post_init()


class IBBertForNextSentencePrediction(IBBertPreTrainedModel, MobileBertForNextSentencePrediction):
    """The next sentence: as :class:`transformers.MobileBertForNextSentencePrediction`."""

    def __init__(self, config: IBBertConfig) -> None:
        super(MobileBertForNextSentencePrediction, self).__init__(config)
        self.ib_bert = IBBertModel(config)
        self.cls = MobileBertOnlyNSPHead(config)
        self.post_init()


class IBBertForSequenceClassification(IBBertPreTrainedModel, MobileBertForSequenceClassification):
    """A label or number for the text: as ``transformers.MobileBertForSequenceClassification``."""

    def __init__(self, config: IBBertConfig) -> None:
        super(MobileBertForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.ib_bert = IBBertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = _output(config)
        self.post_init()


class IBBertForTokenClassification(IBBertPreTrainedModel, MobileBertForTokenClassification):
    """A label for each token: as :class:`transformers.MobileBertForTokenClassification`."""

    def __init__(self, config: IBBertConfig) -> None:
        super(MobileBertForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.ib_bert = IBBertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = _output(config)
        self.post_init()


class IBBertForQuestionAnswering(IBBertPreTrainedModel, MobileBertForQuestionAnswering):
    """A span of the text: as :class:`transformers.MobileBertForQuestionAnswering`."""

    def __init__(self, config: IBBertConfig) -> None:
        super(MobileBertForQuestionAnswering, self).__init__(config)
        self.num_labels = config.num_labels
        self.ib_bert = IBBertModel(config, add_pooling_layer=False)
        self.qa_outputs = _output(config)
        self.post_init()


def _set_eps(norm: nn.Module, config: IBBertConfig) -> None:
    if isinstance(norm, nn.LayerNorm):
        norm.eps = config.layer_norm_eps


def _output(config: IBBertConfig) -> nn.Linear:
    assert config.num_labels is not None  # transformers makes it 2 where nothing is said
    return nn.Linear(config.hidden_size, config.num_labels)


def _classifier_dropout(config: IBBertConfig) -> float:
    own = config.classifier_dropout
    return config.hidden_dropout_prob if own is None else own
