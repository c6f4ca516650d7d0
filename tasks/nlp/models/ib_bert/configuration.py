"""Shapes of IB-BERT and of the MobileBERT students."""

from __future__ import annotations

from typing import Any

from transformers import MobileBertConfig
from transformers.activations import ACT2FN
from transformers.models.mobilebert.modeling_mobilebert import NORM2FN

from .....core.errors import ConfigError, did_you_mean

__all__ = ["IBBertConfig"]

# What the students of Google's release have in common.
_STUDENT: dict[str, Any] = dict(
    intra_bottleneck_size=128,
    intermediate_size=512,
    num_feedforward_networks=4,
    hidden_act="relu",
    hidden_dropout_prob=0.0,
    normalization_type="no_norm",
    classifier_activation=False,
)


class IBBertConfig(MobileBertConfig):
    """A BERT whose blocks are ``hidden_size`` wide outside and ``intra_bottleneck_size`` inside.

    The fields and their meaning are those of :class:`transformers.MobileBertConfig`; the defaults
    are IB-BERT-large, ``uncased_L-24_H-1024_B-512_A-4`` of Google's release. Where queries and
    keys come from is chosen by two fields:

    ================  ============================  ===============================  =============
    variant           ``use_bottleneck_attention``  ``key_query_shared_bottleneck``  values from
    ================  ============================  ===============================  =============
    straight          ``False``                     ``False``                        block's input
    shared            ``False``                     ``True``                         block's input
    bottlenecked      ``True``                      ``False``                        bottleneck
    ================  ============================  ===============================  =============

    Straight attention reads the block's input, which is ``hidden_size`` wide, for queries and keys
    as well. That is IB-BERT, and the 25.3 M student of the paper; transformers' MobileBERT gives
    their layers the wrong width.

    Args:
        hidden_size: Width between blocks; what teacher and student have in common. 512 by default.
        intra_bottleneck_size: Width inside a block: attention and feed-forward networks. 1024 by
            default.
        embedding_size: Width of the word embeddings. 128 by default.
        trigram_input: Whether a position is embedded from its word and both neighbours. True by
            default.
        num_hidden_layers: Blocks. 24 by default.
        num_attention_heads: Heads of a block. 4 by default.
        intermediate_size: Width inside a feed-forward network. 4096 by default.
        num_feedforward_networks: Feed-forward networks of a block. 1 by default.
        hidden_act: ``"gelu"`` by default. Google's code calls its tanh approximation ``gelu``: for
            weights trained by it, set ``"gelu_pytorch_tanh"``.
        normalization_type: ``"layer_norm"`` (default) or ``"no_norm"``, a weight and a bias alone.
        layer_norm_eps: Of every layer norm. 1e-12 by default, as in Google's code.
        classifier_activation: Whether the pooler has a dense layer and tanh. True by default.
        use_bottleneck_attention: See the table. False by default.
        key_query_shared_bottleneck: See the table. False by default.

    The rest is as in :class:`transformers.MobileBertConfig`.

    Raises:
        ConfigError: If the fields do not go together.

    Reference:
        Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
        ACL 2020, https://arxiv.org/abs/2004.02984

    Example:
        >>> config = IBBertConfig.large(num_hidden_layers=2)
        >>> config.hidden_size, config.intra_bottleneck_size, config.straight_attention
        (512, 1024, True)
    """

    model_type = "ib_bert"

    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    intra_bottleneck_size: int = 1024
    key_query_shared_bottleneck: bool = False
    num_feedforward_networks: int = 1
    normalization_type: str = "layer_norm"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check()  # last: saved files hold true_hidden_size, and other fields may have changed

    @classmethod
    def large(cls, **changes: Any) -> IBBertConfig:
        """IB-BERT-large, the teacher: ``L-24_H-1024_B-512_A-4``, 294 M parameters.

        Args:
            **changes: Fields that differ.
        """
        return cls(**changes)

    @classmethod
    def mobilebert(cls, **changes: Any) -> IBBertConfig:
        """The released MobileBERT: ``L-24_H-128_B-512_A-4_F-4_OPT``, 24.6 M parameters.

        Queries and keys share a bottleneck; transformers has the same network as ``mobilebert``.

        Args:
            **changes: Fields that differ.
        """
        return cls(**{**_STUDENT, "key_query_shared_bottleneck": True, **changes})

    @classmethod
    def mobilebert_straight(cls, **changes: Any) -> IBBertConfig:
        """The MobileBERT of the paper's tables: 25.4 M parameters, queries and keys straight.

        Args:
            **changes: Fields that differ.
        """
        return cls(**{**_STUDENT, **changes})

    @classmethod
    def mobilebert_tiny(cls, **changes: Any) -> IBBertConfig:
        """MobileBERT-tiny: ``L-24_H-128_B-512_A-4_F-2_tiny_OPT``, 15.5 M parameters.

        Args:
            **changes: Fields that differ.

        Example:
            >>> IBBertConfig.mobilebert_tiny().num_feedforward_networks
            2
        """
        tiny = {"use_bottleneck_attention": True, "num_feedforward_networks": 2}
        return cls(**{**_STUDENT, **tiny, **changes})

    @classmethod
    def from_mobilebert(cls, config: MobileBertConfig, **changes: Any) -> IBBertConfig:
        """The config of the same network as a transformers MobileBERT's, its labels included.

        Args:
            config: A MobileBERT's config.
            **changes: Fields that differ.

        Raises:
            ConfigError: If the fields do not go together.

        Example:
            >>> config = IBBertConfig.from_mobilebert(MobileBertConfig(num_hidden_layers=2))
            >>> config.num_hidden_layers, config.normalization_type
            (2, 'no_norm')
        """
        fields = config.to_dict()
        for key in ("model_type", "architectures", "transformers_version"):
            fields.pop(key, None)
        return cls(**{**fields, **changes})

    @property
    def straight_attention(self) -> bool:
        """Whether queries and keys read the block's input, past any bottleneck."""
        return (
            self.use_bottleneck
            and not self.use_bottleneck_attention
            and not self.key_query_shared_bottleneck
        )

    def check(self) -> None:
        """Derive ``true_hidden_size``, and check that the fields go together.

        Models call it again when they are made, since fields may be set in between.

        Raises:
            ConfigError: If they do not.
        """
        self.true_hidden_size = (
            self.intra_bottleneck_size if self.use_bottleneck else self.hidden_size
        )
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} of IB-BERT; expected at least 1.")
        inner = "intra_bottleneck_size" if self.use_bottleneck else "hidden_size"
        if self.true_hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"{inner}={self.true_hidden_size} cannot be divided among num_attention_heads="
                f"{self.num_attention_heads}. Take a multiple of it."
            )
        if self.embedding_size > self.hidden_size:
            raise ConfigError(
                f"embedding_size={self.embedding_size} is larger than hidden_size="
                f"{self.hidden_size}, but the output layer is the word embeddings and "
                "hidden_size - embedding_size columns more."
            )
        for name, known in (("normalization_type", NORM2FN), ("hidden_act", ACT2FN)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"{name}={value!r} of IB-BERT is not one of {', '.join(known)}."
                    f"{did_you_mean(value, known)}"
                )
        if self.use_bottleneck_attention and self.key_query_shared_bottleneck:
            raise ConfigError(
                "use_bottleneck_attention=True takes queries, keys and values from the block's "
                "bottleneck, so that of key_query_shared_bottleneck=True would never be read. Set "
                "one of them to False."
            )


_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intra_bottleneck_size",
    "embedding_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_feedforward_networks",
    "max_position_embeddings",
    "type_vocab_size",
)
