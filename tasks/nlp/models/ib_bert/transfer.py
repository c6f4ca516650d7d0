"""What a student takes from its teacher before progressive knowledge transfer."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mobilebert.modeling_mobilebert import NoNorm

from .....core.errors import TeacherError

__all__ = ["copy_embeddings_and_head"]


def copy_embeddings_and_head(
    student: PreTrainedModel, teacher: PreTrainedModel, *, across_norms: bool = False
) -> list[str]:
    """Copy everything outside the encoder from teacher to student where name and shape agree.

    That is the word, position and segment embeddings, the trigram transformation, the pooler and
    the head, pre-training or classification. It is how progressive knowledge transfer starts: the
    blocks then learn one after another under a fixed input and output.

    The norm of the embeddings is a layer norm in IB-BERT and a mere weight and bias (``NoNorm``)
    in MobileBERT. By default it is copied between norms of one kind only, and the student keeps
    its own; so does Google's code, which looks for equal names and calls them differently.

    Args:
        student: A model of this module or a MobileBERT of transformers, with a head or without.
        teacher: The same; it may have another head, whose entries then find no partner.
        across_norms: Whether to copy the weight and bias of a norm to one of the other kind too.

    Returns:
        Names of what was copied, as in the student's ``state_dict()``.

    Raises:
        TeacherError: If nothing fits.

    Reference:
        Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
        ACL 2020, section 3.5, https://arxiv.org/abs/2004.02984

    Example:
        >>> from .configuration import IBBertConfig
        >>> from .modeling import IBBertModel
        >>> sizes = dict(vocab_size=9, num_hidden_layers=1, hidden_size=8, embedding_size=4)
        >>> teacher = IBBertModel(IBBertConfig.large(**sizes), add_pooling_layer=False)
        >>> student = IBBertModel(IBBertConfig.mobilebert(**sizes), add_pooling_layer=False)
        >>> for name in copy_embeddings_and_head(student, teacher):
        ...     print(name)
        embeddings.word_embeddings.weight
        embeddings.position_embeddings.weight
        embeddings.token_type_embeddings.weight
        embeddings.embedding_transformation.weight
        embeddings.embedding_transformation.bias
    """
    theirs = {_plain(name, teacher): (name, value) for name, value in teacher.state_dict().items()}
    # A tied entry of the student follows the one that it is tied to.
    tied = student.all_tied_weights_keys
    pairs: list[tuple[str, Tensor, Tensor]] = []
    for name, value in student.state_dict().items():
        plain = _plain(name, student)
        if plain.startswith("encoder.") or name in tied or plain not in theirs:
            continue
        other, source = theirs[plain]
        same_norm = _is_no_norm(student, name) == _is_no_norm(teacher, other)
        if source.shape == value.shape and (same_norm or across_norms):
            pairs.append((name, value, source))
    if not pairs:
        raise TeacherError(
            f"Nothing outside the encoder of {type(teacher).__name__} fits {type(student).__name__}"
            ": expected embeddings or a head of the same names and shapes. Give both the same "
            "vocab_size, embedding_size, hidden_size and trigram_input."
        )
    with torch.no_grad():
        for _, value, source in pairs:
            value.copy_(source)
    return [name for name, _, _ in pairs]


def _plain(name: str, model: PreTrainedModel) -> str:
    return name.removeprefix(f"{model.base_model_prefix}.")


def _is_no_norm(model: PreTrainedModel, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), NoNorm)
