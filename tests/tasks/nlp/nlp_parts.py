"""Tiny models and texts that several tests share. Run as a script: one process of the DDP test."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

VOCABULARY = 50
HEADS = {
    "classification": BertForSequenceClassification,
    "tokens": BertForTokenClassification,
    "masked_lm": BertForMaskedLM,
    "answers": BertForQuestionAnswering,
}
PAIRS = [
    dict(student="outputs.logits", loss="KLDivergence", temperature=2.0, name="kl"),
    dict(
        student="outputs.hidden_states",
        layers="uniform",
        loss="HiddenStateTransfer",
        weight=0.5,
        name="hidden",
    ),
    dict(student="outputs.attentions", layers="uniform", loss="AttentionMap", name="attention"),
]


def model(
    head: str = "classification", width: int = 8, layers: int = 2, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A tiny BERT without dropout, weights spread wider than at initialisation."""
    settings = dict(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=16,
        num_labels=2 if head == "answers" else 3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    made = HEADS[head](BertConfig(**{**settings, **changes}))
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def teacher(head: str = "classification", **changes: Any) -> PreTrainedModel:
    """Twice as deep and wide."""
    return model(head, **{"width": 16, "layers": 4, "seed": 7, **changes})


def rows(head: str = "classification", count: int = 16, seed: int = 1) -> list[dict[str, Any]]:
    """Samples of differing length; a third of the tokens without a label."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: int = 1, low: int = 0) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    made = []
    for index in range(count):
        # The loss of answers counts padding: with equal lengths it does not depend on the batch.
        length = 11 if head == "answers" else draw(12, low=3)[0]
        row: dict[str, Any] = dict(
            input_ids=draw(VOCABULARY, length, low=1),
            attention_mask=[1] * length,
            token_type_ids=draw(2, length),
        )
        if head == "classification":
            row["labels"] = index % 3
        elif head == "answers":
            row["start_positions"], row["end_positions"] = sorted(draw(length, 2))
        else:
            high = 3 if head == "tokens" else VOCABULARY
            kept = draw(3, length)
            row["labels"] = [
                v if k else -100 for v, k in zip(draw(high, length), kept, strict=True)
            ]
            row["labels"][0] = 1  # one at least
        made.append(row)
    return made


def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad to the longest."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    batch = {}
    for key, value in samples[0].items():
        fill = -100 if key == "labels" else 0
        if isinstance(value, list):
            columns = [s[key] + [fill] * (longest - len(s[key])) for s in samples]
        else:
            columns = [sample[key] for sample in samples]
        batch[key] = torch.tensor(columns)
    return batch


def arguments(folder: Path | str, **changes: Any) -> TrainingArguments:
    """A few steps of SGD on the CPU."""
    settings: dict[str, Any] = dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=3,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        weight_decay=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        log_level="error",
        seed=3,
    )
    return TrainingArguments(**{**settings, **changes})


def trainer(folder: Path | str, student: PreTrainedModel, **options: Any) -> Trainer:
    """A plain Trainer; `head`, `data` and `kind` are ours, other options those of the arguments."""
    head = options.pop("head", "classification")
    given = {k: options.pop(k) for k in ("callbacks", "optimizers", "eval_dataset") if k in options}
    kind = options.pop("kind", Trainer)
    data = options.pop("data", None) or rows(head)
    return kind(
        model=student,
        args=arguments(folder, **options),
        train_dataset=data,
        data_collator=collate,
        **given,
    )


def largest_gap(first: Any, second: Any) -> float:
    """Largest difference of two models' parameters."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def train_case(folder: str, case: str) -> None:
    """Train, maybe as one of several processes, and save what came out."""
    from taskdistill.tasks.nlp import DistillationCallback

    head, _, more = case.partition("+")
    recipe: Any = PAIRS
    if more == "stages":
        first = dict(PAIRS[1], stage="first")
        stages = [dict(name="first", until=2, task_weight=0.0), dict(name="second")]
        recipe = dict(pairs=[first, PAIRS[0]], stages=stages, unit="step")
    elif more == "layers":
        recipe = layers_recipe()
    student, wide = model(head), teacher(head)
    if more == "layers":
        wide = teacher(head, width=8, layers=2)
    cache = dict(path=f"{folder}/cache", dtype="fp32", shard_mb=0.002) if more == "cache" else None
    callback = DistillationCallback(wide, recipe, cache=cache)
    world = int(os.environ.get("WORLD_SIZE", 1))
    run = trainer(
        folder,
        student,
        head=head,
        callbacks=[callback],
        per_device_train_batch_size=8 // world,
        ddp_backend="gloo" if world > 1 else None,
        gradient_accumulation_steps=1,
        max_steps=4,
        train_sampling_strategy="sequential",
    )
    run.train()
    assert callback.distillation is not None
    rank = int(os.environ.get("RANK", 0))
    state = {
        "student": student.state_dict(),
        "adapters": callback.distillation.distiller.state_dict(),
        "log": [row for row in run.state.log_history if "loss" in row],
    }
    torch.save(state, Path(folder) / f"{case}.{rank}.pt")


def layers_recipe(steps: int = 2) -> dict[str, Any]:
    """MobileBERT's stages on a pair of equal depth."""
    return dict(
        name="mobilebert", steps_per_layer=steps, warmup=0.0, next_sentence=False, copy=False
    )


if __name__ == "__main__":
    for each in sys.argv[2:]:
        train_case(sys.argv[1], each)
    from taskdistill.tasks.common.processes import leave_process_group

    leave_process_group()
