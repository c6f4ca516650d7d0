from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerFast

from taskdistill.core.errors import ConfigError, DataError
from taskdistill.tasks.nlp.data import DataArguments
from taskdistill.tasks.nlp.data.encoding import Frame, check_texts, check_tokenizer


def roberta_like(**options: str) -> PreTrainedTokenizerFast:
    """Two separators between a pair, and no token types."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **options
    )


def test_a_frame_wraps_as_the_tokenizer_does(tokenizer: BertTokenizer) -> None:
    frame = Frame.of(tokenizer)
    encoded = tokenizer("the cat sat", "was it bad ?")
    ids = [
        tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("the cat sat", "was it bad ?")
    ]
    assert frame.pair(*ids) == (encoded["input_ids"], encoded["token_type_ids"])
    assert frame.single(ids[0]) == tokenizer("the cat sat")["input_ids"]
    assert (frame.single_cost, frame.pair_cost) == (2, 3)


def test_a_frame_of_another_kind_of_tokenizer() -> None:
    frame = Frame.of(roberta_like(pad_token="<pad>"))
    assert frame == Frame((0,), (2, 2), (2,), None)
    assert frame.pair([4], [5]) == ([0, 4, 2, 2, 5, 2], [0] * 6)


def test_tokenizers_that_cannot_do_the_task(tokenizer: BertTokenizer) -> None:
    args = DataArguments("classification", dataset_name="x")
    with pytest.raises(ConfigError, match="has no padding token"):
        check_tokenizer(roberta_like(), args)
    unmasked = roberta_like(pad_token="<pad>")
    check_tokenizer(unmasked, args)
    with pytest.raises(ConfigError, match="has no mask token, which task 'masked_lm' needs"):
        check_tokenizer(unmasked, replace(args, task="masked_lm"))
    short = roberta_like(pad_token="<pad>", model_max_length=64)
    with pytest.raises(ConfigError, match="max_length=128 is longer than the 64 tokens"):
        check_tokenizer(short, args)


def test_a_tokenizer_in_plain_python_is_refused() -> None:
    class Slow:
        is_fast = False

    args = DataArguments("classification", dataset_name="x")
    with pytest.raises(ConfigError, match="Slow is a tokenizer in plain Python"):
        check_tokenizer(Slow(), args)


def test_rows_without_text_are_said() -> None:
    check_texts(["a", ""], "text")
    with pytest.raises(DataError, match="nothing in column 'text'"):
        check_texts(["a", None], "text")
