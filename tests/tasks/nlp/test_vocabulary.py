from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DistilBertConfig,
    DistilBertTokenizer,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
)

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.nlp.vocabulary import (
    check_labels,
    check_vocabulary,
    check_vocabulary_logits,
    load_tokenizer_of,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["cafe", "café", "house", "hello", "world", "##s"]


def tokenizer(words: list[str] = WORDS, kind: type = BertTokenizer, **options):
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
    return kind(vocab=vocabulary, **options)


def config(size: int = len(SPECIAL) + len(WORDS), **changes) -> BertConfig:
    return BertConfig(vocab_size=size, **changes)


def test_one_tokenizer_for_both_is_well():
    check_vocabulary(config(), config(), tokenizer(), tokenizer())
    check_vocabulary(config(), config(), tokenizer())
    check_vocabulary(config(), config())


def test_a_distilbert_reads_what_a_bert_does():
    check_vocabulary(config(), config(), tokenizer(kind=DistilBertTokenizer), tokenizer())


def test_padded_embeddings_are_well():
    check_vocabulary(config(), config(64), tokenizer(), tokenizer())
    check_vocabulary(config(64), config(), tokenizer(), tokenizer())
    check_vocabulary(config(30522), config(30528))


def test_a_teacher_may_have_more_tokens():
    check_vocabulary(config(), config(13), tokenizer(), tokenizer([*WORDS, "more", "tokens"]))


def test_tokens_of_other_numbers_are_named():
    other = ["café", "cafe", *WORDS[2:]]
    message = r"2 of its 11 tokens .* 'cafe' \(student 5, teacher 6\), 'café' \(student 6, teacher"
    with pytest.raises(ConfigError, match=message):
        check_vocabulary(config(), config(), tokenizer(), tokenizer(other))


def test_a_token_that_the_teacher_lacks_is_named():
    with pytest.raises(ConfigError, match=r"'new' \(student 11, teacher has none\)"):
        check_vocabulary(config(12), config(), tokenizer([*WORDS, "new"]), tokenizer())


def test_only_five_tokens_are_named():
    other = [f"w{index}" for index in range(20)]
    with pytest.raises(ConfigError, match="20 of its 25 tokens") as caught:
        check_vocabulary(config(25), config(), tokenizer(other), tokenizer())
    assert str(caught.value).count("teacher has none") == 5


@pytest.mark.parametrize(("option", "value"), [("do_lower_case", False), ("strip_accents", False)])
def test_same_tokens_but_other_normalisation(option, value):
    message = rf"same tokens but cut text differently.* {option} \("
    with pytest.raises(ConfigError, match=message):
        check_vocabulary(config(), config(), tokenizer(), tokenizer(**{option: value}))
    with pytest.raises(ConfigError, match=message):
        check_vocabulary(config(), config(), tokenizer(**{option: value}), tokenizer())


def test_byte_level_tokenizers_are_compared_too():
    tokens = [*SPECIAL, "h", "i", "Ġ", "hi", "Ġhi"]
    pairs = [("h", "i"), ("Ġ", "hi")]
    special = dict(unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]")

    def bytes_of(prefix: bool) -> RobertaTokenizer:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        return RobertaTokenizer(vocabulary, pairs, add_prefix_space=prefix, **special)

    check_vocabulary(config(16), config(16), bytes_of(True), bytes_of(True))
    with pytest.raises(ConfigError, match=r"add_prefix_space \(True, False\)"):
        check_vocabulary(config(16), config(16), bytes_of(True), bytes_of(False))


def test_same_tokens_but_other_special_tokens_around_the_text():
    bare = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    )
    check_vocabulary(config(), config(), bare, tokenizer())  # they share the template
    without = Tokenizer(models.WordPiece(tokenizer().get_vocab(), unk_token="[UNK]"))
    without.normalizer = normalizers.BertNormalizer(lowercase=True)
    without.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    without.decoder = decoders.WordPiece()
    other = PreTrainedTokenizerFast(tokenizer_object=without, unk_token="[UNK]")
    with pytest.raises(ConfigError, match=r"teacher's makes \['\[CLS\]'"):
        check_vocabulary(config(), config(), other, tokenizer())


def test_a_special_token_of_another_number():
    with pytest.raises(ConfigError, match=r"'\[MASK\]' \(4\) as its mask token .*'\[UNK\]' \(1\)"):
        check_vocabulary(config(), config(), tokenizer(), tokenizer(mask_token="[UNK]"))


@pytest.mark.parametrize("sizes", [(30522, 28996), (30522, 30523), (50265, 250002)])
def test_sizes_alone_have_to_agree(sizes):
    mine, its = sizes
    with pytest.raises(ConfigError, match=f"has {mine} tokens and the teacher's {its}"):
        check_vocabulary(config(mine), config(its))


@pytest.mark.parametrize(("mine", "its", "side"), [(8, 11, "student"), (11, 8, "teacher")])
def test_tokens_without_an_embedding(mine, its, side):
    with pytest.raises(ConfigError, match=f"'##s' has id 10, but the {side} embeds 8"):
        check_vocabulary(config(mine), config(its), tokenizer(), tokenizer())


def test_logits_over_the_vocabulary_need_one_size():
    check_vocabulary_logits(config(30522), config(30522))
    with pytest.raises(ConfigError, match=r"resize_token_embeddings\(30528\)"):
        check_vocabulary_logits(config(30522), config(30528))


def test_a_teacher_of_shorter_texts():
    short = config(max_position_embeddings=128)
    with pytest.raises(
        ConfigError, match="Samples may be 512 tokens long, and the teacher reads 1"
    ):
        check_vocabulary(config(), short)
    check_vocabulary(config(), short, max_length=128)
    check_vocabulary(config(), short, tokenizer(model_max_length=128))
    check_vocabulary(short, config())
    with pytest.raises(ConfigError, match="max_length=256, but the student reads 128"):
        check_vocabulary(short, config(), max_length=256)


def test_what_a_roberta_reads_is_less_than_its_positions():
    roberta = RobertaConfig(vocab_size=11, max_position_embeddings=514, pad_token_id=1)
    check_vocabulary(config(max_position_embeddings=512), roberta, max_length=512)
    with pytest.raises(
        ConfigError, match="Samples may be 513 tokens long, and the teacher reads 5"
    ):
        check_vocabulary(
            config(max_position_embeddings=514, type_vocab_size=1), roberta, max_length=513
        )


def test_relative_positions_have_no_end():
    relative = dict(vocab_size=11, max_position_embeddings=64, position_biased_input=False)
    check_vocabulary(config(), DebertaV2Config(**relative))
    check_vocabulary(DebertaV2Config(**relative), config(), tokenizer())
    rotary = ModernBertConfig(vocab_size=11, pad_token_id=0, max_position_embeddings=64)
    with pytest.raises(ConfigError, match="the teacher reads 64"):
        check_vocabulary(config(), rotary)


def test_a_roberta_padded_with_another_token():
    roberta = RobertaConfig(vocab_size=11, pad_token_id=1, type_vocab_size=2)
    with pytest.raises(
        ConfigError, match="pads with id 0, but the teacher's config says pad_token_"
    ):
        check_vocabulary(config(), roberta, tokenizer(), max_length=64)
    with pytest.raises(ConfigError, match="the student's config says pad_token_id=1"):
        check_vocabulary(roberta, config(), tokenizer(), max_length=64)
    roberta.pad_token_id = 0
    check_vocabulary(config(), roberta, tokenizer(), max_length=64)


def test_a_teacher_of_fewer_token_types():
    one = config(type_vocab_size=1)
    with pytest.raises(ConfigError, match="knows 2 token types and the teacher 1"):
        check_vocabulary(config(), one)
    check_vocabulary(config(), one, tokenizer(kind=DistilBertTokenizer))  # it makes none
    check_vocabulary(one, config())
    check_vocabulary(config(), DistilBertConfig(vocab_size=11))


def test_the_tokenizer_of_a_folder(tmp_path):
    assert load_tokenizer_of(tmp_path / "nothing") is None
    config().save_pretrained(tmp_path)
    assert load_tokenizer_of(tmp_path) is None
    tokenizer(do_lower_case=False).save_pretrained(tmp_path)
    loaded = load_tokenizer_of(str(tmp_path))
    assert loaded is not None
    check_vocabulary(config(), config(), loaded, tokenizer(do_lower_case=False))


def test_a_tokenizer_of_a_vocabulary_file(tmp_path):
    config().save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]))
    loaded = load_tokenizer_of(tmp_path)
    assert loaded is not None and loaded.get_vocab() == tokenizer().get_vocab()


@pytest.mark.parametrize("content", ["{broken", '{"model": 3}', ""])
def test_a_damaged_tokenizer_is_no_missing_one(tmp_path, content):
    config().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer_of(tmp_path)


def test_a_tokenizer_without_its_vocabulary(tmp_path):
    config().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="its vocabulary is missing"):
        load_tokenizer_of(tmp_path)


def labelled(*names: str, **changes) -> BertConfig:
    return BertConfig(id2label=dict(enumerate(names)), **changes)


def test_labels_that_agree():
    check_labels(labelled("bad", "good"), labelled("bad", "good"))
    check_labels(labelled("Bad", "GOOD"), labelled("bad", "good"))
    check_labels(BertConfig(), labelled("bad", "good"))
    check_labels(labelled("bad", "good"), BertConfig(num_labels=2))
    check_labels(
        DistilBertConfig(num_labels=1), BertConfig(num_labels=1, problem_type="regression")
    )
    check_labels(BertConfig(problem_type="single_label_classification"), BertConfig())


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (BertConfig(num_labels=3), BertConfig(), r"has 3 labels \(\[LABEL_0, .* the teacher 2"),
        (
            labelled("good", "bad"),
            labelled("bad", "good"),
            r"in another order .*\[good, bad\] and \[bad, good\]",
        ),
        (labelled("x", "y"), labelled("bad", "good"), "have other names"),
        (
            BertConfig(problem_type="multi_label_classification"),
            BertConfig(problem_type="single_label_classification"),
            "'multi_label_classification' and the teacher's 'single_label",
        ),
        (
            BertConfig(num_labels=1),
            BertConfig(num_labels=1, problem_type="multi_label_classification"),
            "problem is 'regression'",
        ),
    ],
)
def test_labels_that_do_not_agree(student, teacher, message):
    with pytest.raises(ConfigError, match=message):
        check_labels(student, teacher)


def test_labels_are_compared_by_number_not_by_listing():
    listed = BertConfig(id2label={1: "good", 0: "bad"})
    check_labels(listed, labelled("bad", "good"))
    ten = [f"class {index}" for index in range(12)]
    check_labels(BertConfig(id2label={str(i): name for i, name in enumerate(ten)}), labelled(*ten))


SMALL = dict(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
