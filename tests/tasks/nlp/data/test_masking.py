from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)

from taskdistill.tasks.nlp.data.masking import (
    MaskingCollator,
    masked_logits,
    masked_metrics,
    pretraining_logits,
    pretraining_metrics,
)


def rows(tokenizer: BertTokenizer, *texts: str) -> list[dict[str, list[int]]]:
    return [dict(tokenizer(text)) for text in texts]


def test_masks_follow_seed_and_batch_and_no_random_state(tokenizer: BertTokenizer) -> None:
    batch = rows(tokenizer, "the cat sat on a mat . " * 4, "a dog ran in the park " * 4)
    torch.manual_seed(1)
    one = MaskingCollator(tokenizer, seed=3)(batch)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    two = MaskingCollator(tokenizer, seed=3)(batch)
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["labels"], two["labels"])
    other_seed = MaskingCollator(tokenizer, seed=4)(batch)
    other_batch = MaskingCollator(tokenizer, seed=3)(batch[::-1])
    assert not torch.equal(one["labels"], other_seed["labels"])
    assert not torch.equal(one["labels"], other_batch["labels"].flip(0))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn from it


def test_shares_are_those_of_bert_and_special_tokens_stay(tokenizer: BertTokenizer) -> None:
    ids = torch.tensor([tokenizer("the cat sat on a mat " * 40)["input_ids"]] * 40)
    masked, labels = MaskingCollator(tokenizer, seed=0).masked(ids)
    kept = labels != -100
    assert not kept[:, [0, -1]].any()
    assert torch.equal(labels[kept], ids[kept])
    assert torch.equal(masked[~kept], ids[~kept])
    assert kept.float().mean().item() == pytest.approx(0.15, abs=0.01)
    hidden = masked[kept] == tokenizer.mask_token_id
    assert hidden.float().mean().item() == pytest.approx(0.8, abs=0.03)
    same = (masked[kept] == ids[kept]).float().mean().item()
    assert same == pytest.approx(0.1, abs=0.03)


def test_a_batch_always_has_a_mask(tokenizer: BertTokenizer) -> None:
    collator = MaskingCollator(tokenizer, mlm_probability=1e-9, seed=0)
    batch = collator(rows(tokenizer, "the cat", "a dog ran"))
    [[row, column]] = (batch["labels"] != -100).nonzero().tolist()
    assert batch["input_ids"][row, column] == tokenizer.mask_token_id
    assert batch["attention_mask"][row, column] == 1
    empty = collator([{"input_ids": [2, 3]}])
    assert (empty["labels"] == -100).all()


def test_rows_masked_before_are_padded_only(tokenizer: BertTokenizer) -> None:
    batch = [
        {"input_ids": [2, 4, 3], "attention_mask": [1, 1, 1], "labels": [-100, 9, -100]},
        {"input_ids": [2, 8, 9, 3], "attention_mask": [1] * 4, "labels": [-100, -100, 7, -100]},
    ]
    made = MaskingCollator(tokenizer, padding="max_length", max_length=6)(batch)
    assert made["input_ids"].tolist() == [[2, 4, 3, 0, 0, 0], [2, 8, 9, 3, 0, 0]]
    assert made["labels"].tolist() == [[-100, 9] + [-100] * 4, [-100, -100, 7] + [-100] * 3]
    assert made["attention_mask"].sum().item() == 7


def test_rows_masked_for_good_are_masked_each_by_itself(tokenizer: BertTokenizer) -> None:
    columns = {"input_ids": [row["input_ids"] for row in rows(tokenizer, "the cat sat", "a dog")]}
    collator = MaskingCollator(tokenizer, seed=0)
    both = collator.mask_rows(columns)
    alone = collator.mask_rows({"input_ids": columns["input_ids"][1:]})
    assert both["labels"][1] == alone["labels"][0]
    assert all(any(label != -100 for label in row) for row in both["labels"])


def test_what_is_kept_of_logits_gives_accuracy_and_perplexity() -> None:
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[-100, 2, 4], [0, -100, -100]])
    kept = masked_logits((logits, torch.ones(1)), labels)
    numbers = tuple(tensor.numpy() for tensor in kept)
    scores = masked_metrics(EvalPrediction(numbers, labels.numpy()))
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert scores["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)
    right = (logits.argmax(-1) == labels)[labels != -100]
    assert scores["mlm_accuracy"] == pytest.approx(right.float().mean().item())


def test_figures_of_pairs() -> None:
    labels = (torch.tensor([[1], [-100]]), torch.tensor([0, 1]))
    outputs = (torch.zeros(2, 1, 4), torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    kept = tuple(tensor.numpy() for tensor in pretraining_logits(outputs, labels))
    numbers = tuple(tensor.numpy() for tensor in labels)
    scores = pretraining_metrics(EvalPrediction(kept, numbers))
    assert scores == {"mlm_accuracy": 0.0, "perplexity": pytest.approx(4.0), "nsp_accuracy": 0.5}


def test_a_set_without_masks_has_no_perplexity() -> None:
    kept = (np.zeros((1, 2)), np.zeros((1, 2)))
    scores = masked_metrics(EvalPrediction(kept, np.full((1, 2), -100)))
    assert scores == {"mlm_accuracy": 0.0, "perplexity": float("inf")}


def test_a_resumed_run_sees_the_masks_of_one_that_never_stopped(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    data = Dataset.from_list(rows(tokenizer, *(f"the cat sat on {w} mat" for w in "abcdefgh")))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )

    def run(folder: Path, resume: str | None) -> dict[str, torch.Tensor]:
        set_seed(0)
        trainer = Trainer(
            BertForMaskedLM(config),
            TrainingArguments(
                str(folder),
                max_steps=7,
                save_steps=2,
                save_strategy="steps",
                logging_strategy="no",
                per_device_train_batch_size=2,
                learning_rate=1e-2,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=5,
            ),
            train_dataset=data,
            data_collator=MaskingCollator(tokenizer, seed=5),
        )
        trainer.train(resume_from_checkpoint=resume)
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    whole = run(tmp_path / "a", None)
    resumed = run(tmp_path / "b", str(tmp_path / "a" / "checkpoint-2"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
