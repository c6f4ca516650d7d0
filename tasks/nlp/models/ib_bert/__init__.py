"""IB-BERT, the teacher of MobileBERT, and the MobileBERT students that transformers cannot run.

Importing it makes ``AutoConfig``, ``AutoModel`` and the ``AutoModelFor...`` of the tasks below know
the model type ``ib_bert``, so that a saved folder loads as any other model's does.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration import IBBertConfig
from .modeling import (
    IBBertForMaskedLM,
    IBBertForNextSentencePrediction,
    IBBertForPreTraining,
    IBBertForQuestionAnswering,
    IBBertForSequenceClassification,
    IBBertForTokenClassification,
    IBBertModel,
    IBBertPreTrainedModel,
)
from .transfer import copy_embeddings_and_head
from .weights import from_google, from_mobilebert, load_original

__all__ = [
    "IBBertConfig",
    "IBBertForMaskedLM",
    "IBBertForNextSentencePrediction",
    "IBBertForPreTraining",
    "IBBertForQuestionAnswering",
    "IBBertForSequenceClassification",
    "IBBertForTokenClassification",
    "IBBertModel",
    "IBBertPreTrainedModel",
    "copy_embeddings_and_head",
    "from_google",
    "from_mobilebert",
    "load_original",
]

AutoConfig.register(IBBertConfig.model_type, IBBertConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, IBBertModel),
    (AutoModelForPreTraining, IBBertForPreTraining),
    (AutoModelForMaskedLM, IBBertForMaskedLM),
    (AutoModelForNextSentencePrediction, IBBertForNextSentencePrediction),
    (AutoModelForSequenceClassification, IBBertForSequenceClassification),
    (AutoModelForTokenClassification, IBBertForTokenClassification),
    (AutoModelForQuestionAnswering, IBBertForQuestionAnswering),
):
    _auto.register(IBBertConfig, _model, exist_ok=True)
