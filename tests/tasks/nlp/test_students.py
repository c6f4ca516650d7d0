from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartModel,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    LongformerConfig,
    LongformerModel,
    MobileBertConfig,
    MobileBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
)

from taskdistill.core.errors import CheckpointError, ConfigError, TeacherError
from taskdistill.tasks.nlp.students import select_layers, student_from_teacher

VOCABULARY = 40
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=24,
    pad_token_id=0,
)


def bert(kind: type[PreTrainedModel] = BertForMaskedLM, **changes) -> PreTrainedModel:
    return randomised(kind(BertConfig(**{**SHAPE, **changes})))


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    # Biases and norms begin equal in every layer: copying the wrong ones has to show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


TEACHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SHAPE, num_labels=3)),
    "xlm-roberta": lambda: XLMRobertaForTokenClassification(XLMRobertaConfig(**SHAPE)),
    "electra": lambda: ElectraForPreTraining(ElectraConfig(**SHAPE, embedding_size=8)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=VOCABULARY, dim=16, hidden_dim=24, n_layers=4, n_heads=2)
    ),
    "mobilebert": lambda: MobileBertForMaskedLM(
        MobileBertConfig(
            **SHAPE,
            embedding_size=8,
            intra_bottleneck_size=8,
            num_feedforward_networks=5,  # each layer holds a list of four, too
        )
    ),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(
        DebertaV2Config(
            **SHAPE,
            relative_attention=True,
            position_buckets=8,
            conv_kernel_size=3,
            pos_att_type=["p2c", "c2p"],
        )
    ),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(
            **SHAPE,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
            local_attention=4,
        )
    ),
    "longformer": lambda: LongformerModel(
        LongformerConfig(**SHAPE, attention_window=[4, 8, 16, 8])
    ),
}


@pytest.fixture(params=TEACHERS)
def teacher(request: pytest.FixtureRequest) -> PreTrainedModel:
    return randomised(TEACHERS[request.param]())


def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, VOCABULARY, (2, 12))
    mask = torch.ones_like(ids)
    ids[1, 8:], mask[1, 8:] = 0, 0
    return dict(input_ids=ids, attention_mask=mask)


@torch.no_grad()
def answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs)[0]


def by_hand(teacher: PreTrainedModel, chosen: list[int]) -> PreTrainedModel:
    """The teacher itself with some of its layers taken out."""
    model = copy.deepcopy(teacher)
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and name in ("layer", "layers"):
                setattr(module, name, nn.ModuleList([child[layer] for layer in chosen]))
    model.config.num_hidden_layers = len(chosen)
    return model


@pytest.mark.parametrize(
    ("layers", "number", "chosen"),
    [
        ("every_other", None, [0, 2, 4, 6, 8, 10]),
        ("every_other", 6, [0, 2, 4, 6, 8, 10]),
        ("uniform", 6, [0, 2, 4, 7, 9, 11]),  # extract_distilbert.py's
        ("uniform", None, [0, 2, 4, 7, 9, 11]),
        ("uniform", 1, [0]),
        ("uniform", 2, [0, 11]),
        ("uniform", 3, [0, 6, 11]),
        ("uniform", 12, list(range(12))),
        ("first", 3, [0, 1, 2]),
        ("last", 3, [9, 10, 11]),
        (range(1, 12, 2), None, [1, 3, 5, 7, 9, 11]),
        ([-1, 0, 0], 3, [11, 0, 0]),
    ],
)
def test_which_layers_of_twelve(layers, number, chosen):
    assert select_layers(12, layers, number) == chosen


@pytest.mark.parametrize("total", range(1, 26))
def test_a_strategy_takes_layers_in_order_and_none_twice(total):
    for strategy in ("every_other", "uniform", "first", "last"):
        chosen = select_layers(total, strategy)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == (total + 1) // 2
        assert 0 <= chosen[0] and chosen[-1] < total


@pytest.mark.parametrize(
    ("layers", "number", "message"),
    [
        ("evry_other", None, "Did you mean 'every_other'"),
        ("0,2,4", None, "such as \\[0, 2, 4\\]"),
        ("uniform", 5, "from 1 to 4"),
        ("first", 0, "from 1 to 4"),
        ("last", True, "from 1 to 4"),
        ("every_other", 3, "layers='uniform', number=3"),
        ([0, 4], None, r"asks for \[4\], but the teacher has 4"),
        ([-5], None, "from -4 to -1"),
        ([], None, "leaves no layer"),
        ([0, 1.5], None, "no layer numbers"),
        (3, None, "no layer numbers"),
        ([0, 1], 3, "are 2, not number=3"),
    ],
)
def test_layers_that_cannot_be_taken(layers, number, message):
    with pytest.raises(ConfigError, match=message):
        select_layers(4, layers, number)


def test_a_student_of_every_layer_is_the_teacher(teacher):
    inputs = batch()
    student = student_from_teacher(teacher, "first", number=4)
    assert type(student) is type(teacher)
    assert torch.equal(answer(student, inputs), answer(teacher, inputs))


@pytest.mark.parametrize("chosen", [[0, 2], [0, 1, 3]])
def test_a_student_is_the_teacher_without_the_other_layers(teacher, chosen):
    inputs = batch()
    student = student_from_teacher(teacher, chosen)
    assert student.config.num_hidden_layers == len(chosen)
    torch.testing.assert_close(answer(student, inputs), answer(by_hand(teacher, chosen), inputs))
    assert not torch.equal(answer(student, inputs), answer(teacher, inputs))


def test_layers_may_be_repeated_and_reordered():
    teacher, inputs = bert(), batch()
    student = student_from_teacher(teacher, [-1, 0, 0, 1, 1])
    assert torch.equal(answer(student, inputs), answer(by_hand(teacher, [3, 0, 0, 1, 1]), inputs))
    first, again = student.base_model.encoder.layer[1:3]
    assert first.output.dense.weight.data_ptr() != again.output.dense.weight.data_ptr()


def test_what_a_config_lists_layer_by_layer_goes_along(teacher):
    student = student_from_teacher(teacher, [0, 3])
    if isinstance(teacher, LongformerModel):
        assert student.config.attention_window == [4, 8]
    if isinstance(teacher, ModernBertForMaskedLM):
        assert teacher.config.layer_types[1] == "sliding_attention"
        assert student.config.layer_types == ["full_attention", "full_attention"]
    if isinstance(teacher, DebertaV2ForMaskedLM):
        assert student.config.pos_att_type == ["p2c", "c2p"]


def test_the_teacher_is_left_alone(teacher):
    teacher.train().requires_grad_(False)
    before, config = copy.deepcopy(teacher.state_dict()), teacher.config.to_dict()
    student = student_from_teacher(teacher, [0, 2])
    theirs = {value.data_ptr() for value in teacher.parameters()}
    assert theirs.isdisjoint(value.data_ptr() for value in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.config.to_dict() == config
    assert teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert not student.training and all(p.requires_grad for p in student.parameters())


def test_dtype_and_ties_are_kept():
    student = student_from_teacher(bert().to(torch.bfloat16))
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    decoder = student.get_output_embeddings().weight
    assert decoder is student.get_input_embeddings().weight


def test_an_untied_teacher_has_an_untied_student():
    teacher = bert(tie_word_embeddings=False)
    student = student_from_teacher(teacher)
    words, decoder = student.get_input_embeddings().weight, student.get_output_embeddings().weight
    assert torch.equal(words, teacher.get_input_embeddings().weight)
    assert torch.equal(decoder, teacher.get_output_embeddings().weight)
    assert not torch.equal(words, decoder)


def head(model: PreTrainedModel) -> dict[str, Tensor]:
    body = f"{model.base_model_prefix}."
    return {n: v for n, v in model.state_dict().items() if not n.startswith(body)}


def test_the_same_head_is_copied_unless_told_otherwise():
    teacher = bert(BertForSequenceClassification)
    kept = head(student_from_teacher(teacher))
    new = head(student_from_teacher(teacher, keep_head=False))
    assert torch.equal(kept["classifier.weight"], teacher.classifier.weight)
    assert not torch.equal(new["classifier.weight"], teacher.classifier.weight)


def test_another_number_of_labels_makes_a_new_head():
    teacher = bert(BertForSequenceClassification)
    student = student_from_teacher(teacher, id2label={"0": "no", "1": "yes", "2": "perhaps"})
    assert student.classifier.weight.shape == (3, 16)
    assert student.config.label2id == {"no": 0, "yes": 1, "perhaps": 2}
    assert student_from_teacher(teacher, num_labels=5).config.num_labels == 5


def test_another_head_on_the_same_encoder():
    teacher = bert(BertForTokenClassification)
    # `classifier.weight` has the same name and shape there, and means something else.
    student = student_from_teacher(teacher, "first", number=4, as_class="BertForMultipleChoice")
    assert type(student).__name__ == "BertForMultipleChoice"
    other = student_from_teacher(teacher, as_class=BertForSequenceClassification)
    assert other.classifier.weight.shape == teacher.classifier.weight.shape
    assert not torch.equal(other.classifier.weight, teacher.classifier.weight)


def test_the_bare_encoder_and_back():
    teacher, inputs = bert(BertModel), batch()
    classifier = student_from_teacher(teacher, range(4), as_class=BertForSequenceClassification)
    encoder = student_from_teacher(classifier, range(4), as_class=BertModel)
    assert torch.equal(encoder(**inputs).pooler_output, teacher(**inputs).pooler_output)


def test_pretraining_heads_are_shared_entry_by_entry():
    teacher = bert(BertForPreTraining)
    inputs = batch()
    words = student_from_teacher(teacher, range(4), as_class=BertForMaskedLM)
    order = student_from_teacher(teacher, range(4), as_class=BertForNextSentencePrediction)
    expected = teacher(**inputs)
    assert torch.equal(answer(words, inputs), expected.prediction_logits)
    assert torch.equal(answer(order, inputs), expected.seq_relationship_logits)


def test_a_distilbert_student_computes_what_its_bert_teacher_does():
    teacher, inputs = bert(), batch()
    student = student_from_teacher(teacher, range(4), as_class="DistilBertForMaskedLM")
    assert isinstance(student, DistilBertForMaskedLM)
    with torch.no_grad():
        mine = student(**inputs, output_hidden_states=True)
        its = teacher(**inputs, output_hidden_states=True)
    for ours, theirs in zip(mine.hidden_states, its.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(mine.logits, its.logits)
    assert student.vocab_projector.weight is student.get_input_embeddings().weight


def test_a_distilbert_of_some_layers():
    teacher, inputs = bert(BertForPreTraining), batch()
    student = student_from_teacher(teacher, "uniform", as_class=DistilBertForMaskedLM)
    torch.testing.assert_close(answer(student, inputs), answer(by_hand(teacher, [0, 3]), inputs))


def test_which_token_type_a_distilbert_keeps():
    teacher, inputs = bert(BertModel), batch()
    second = dict(inputs, token_type_ids=torch.ones_like(inputs["input_ids"]))
    of = dict(layers=range(4), as_class=DistilBertModel)
    one = student_from_teacher(teacher, **of, token_type=1)
    torch.testing.assert_close(answer(one, inputs), answer(teacher, second))
    none = student_from_teacher(teacher, **of, token_type=None)
    positions = none.embeddings.position_embeddings.weight
    assert torch.equal(positions, teacher.embeddings.position_embeddings.weight)
    with pytest.raises(ConfigError, match="none of the teacher's 2"):
        student_from_teacher(teacher, **of, token_type=2)


def test_heads_of_a_distilbert():
    answers = bert(BertForQuestionAnswering)
    student = student_from_teacher(answers, range(4), as_class=DistilBertForQuestionAnswering)
    inputs = batch()
    torch.testing.assert_close(answer(student, inputs), answer(answers, inputs))
    teacher = bert(BertForSequenceClassification, id2label={0: "bad", 1: "good"})
    classes = student_from_teacher(teacher, as_class=DistilBertForSequenceClassification)
    assert classes.config.id2label == {0: "bad", 1: "good"}
    # A ReLU is in front of it where BERT has a tanh.
    assert not torch.equal(classes.classifier.weight, teacher.classifier.weight)


def test_config_changes_arrive():
    student = student_from_teacher(bert(), hidden_dropout_prob=0.3)
    assert student.config.hidden_dropout_prob == 0.3
    assert student.base_model.embeddings.dropout.p == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden_size=8), "HiddenStateTransfer"),
        (dict(num_attention_heads=4), "cut into other heads"),
        (dict(tie_word_embeddings=False), "one tensor or two"),
        (dict(intermediate_size=48), "Change no config field"),
        (dict(vocab_size=48), "resize_token_embeddings"),
        (dict(num_hidden_layers=2), "layers='uniform', number=2"),
        (dict(hiden_dropout_prob=0.3), "Did you mean 'hidden_dropout_prob'"),
        (dict(hidden_dropout_prob="much"), "is not what BertConfig expects"),
        (dict(as_class="BertForSequenceClasification"), "Did you mean"),
        (dict(as_class=nn.Linear), "no model class"),
        (dict(as_class="RobertaForMaskedLM"), "different architectures"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        student_from_teacher(bert(), **changes)


def test_a_roberta_has_no_distilbert_student():
    teacher = RobertaForSequenceClassification(RobertaConfig(**SHAPE))
    with pytest.raises(ConfigError, match="different architectures"):
        student_from_teacher(teacher, as_class="DistilBertForSequenceClassification")


def test_teachers_that_have_no_layers_to_choose_from():
    shared = AlbertModel(AlbertConfig(**SHAPE, embedding_size=8))
    with pytest.raises(TeacherError, match="share their weights"):
        student_from_teacher(shared)
    sizes = dict(d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=20)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    two = BartModel(BartConfig(**sizes, **heads, encoder_layers=2, decoder_layers=2))
    with pytest.raises(TeacherError, match="encoder-decoder"):
        student_from_teacher(two)
    with pytest.raises(ConfigError, match="Expected a model of transformers"):
        student_from_teacher(nn.Linear(2, 2))  # type: ignore[arg-type]
    quantised = bert()
    quantised.config.quantization_config = {"quant_method": "some"}
    with pytest.raises(TeacherError, match="floating point"):
        student_from_teacher(quantised)


@pytest.mark.parametrize("chosen", [[1, 2], [0, 1, 0]])
def test_a_layer_that_differs_from_the_others_stays_in_its_place(chosen):
    teacher = TEACHERS["modernbert"]()
    with pytest.raises(TeacherError, match="leave it in its place"):
        student_from_teacher(teacher, chosen)


def test_a_teacher_from_its_folder(tmp_path):
    teacher, inputs = bert(), batch()
    teacher.save_pretrained(tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        student = student_from_teacher(folder, [0, 2])
        assert isinstance(student, BertForMaskedLM)
        assert torch.equal(answer(student, inputs), answer(by_hand(teacher, [0, 2]), inputs))


def test_folders_that_hold_no_teacher(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be opened"):
        student_from_teacher(tmp_path / "nothing")
    teacher = bert()
    state = teacher.state_dict()
    state.pop("bert.encoder.layer.1.output.dense.weight")
    teacher.save_pretrained(tmp_path / "partial", state_dict=state)
    with pytest.raises(CheckpointError, match="lacks 1 of BertForMaskedLM's weights"):
        student_from_teacher(tmp_path / "partial")
    teacher.save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        student_from_teacher(tmp_path / "damaged")


def test_what_is_new_is_logged(caplog):
    caplog.set_level("INFO", logger="taskdistill")
    student_from_teacher(bert(BertForSequenceClassification), keep_head=False)
    assert "layers [0, 2] of the teacher's 4; new are: classifier.weight" in caplog.text
    caplog.clear()
    student_from_teacher(bert(), as_class=DistilBertForMaskedLM)
    assert "new are: none of its weights" in caplog.text


OPEN = """
import sys
sys.modules["taskdistill"] = None
import torch
from transformers import AutoModelForMaskedLM
for folder in sys.argv[1:]:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    inputs = torch.load(folder + "/batch.pt", weights_only=True)
    with torch.no_grad():
        torch.save(model(**inputs)[0], folder + "/logits.pt")
"""


def test_a_saved_student_opens_without_taskdistill(tmp_path):
    inputs, expected = batch(), {}
    for name in ("bert", "mobilebert", "deberta-v2", "modernbert"):
        teacher = randomised(TEACHERS[name]())
        expected[tmp_path / name] = student_from_teacher(teacher, [0, 3])
    distilbert = student_from_teacher(bert(), as_class=DistilBertForMaskedLM)
    expected[tmp_path / "distilbert"] = distilbert
    for folder, student in expected.items():
        student.save_pretrained(folder)
        torch.save(inputs, folder / "batch.pt")
    script = tmp_path / "open.py"
    script.write_text(OPEN)
    subprocess.run([sys.executable, script, *map(str, expected)], check=True, timeout=120)
    for folder, student in expected.items():
        logits = torch.load(Path(folder) / "logits.pt", weights_only=True)
        torch.testing.assert_close(logits, answer(student, inputs))
