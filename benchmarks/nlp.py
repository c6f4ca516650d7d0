"""What distilling a BERT adds to a step of transformers' Trainer, in time and memory.

    python benchmarks/nlp.py                # on the CPU, a minute or two
    python benchmarks/nlp.py --rounds 20 --write benchmarks/nlp.md
    python benchmarks/nlp.py --device cuda --batch 64

A student of 4 layers x 192 and a teacher of 8 x 384, with 8 heads each; texts, labels and weights
are random: a step costs what it costs, whatever it learns. Texts are a quarter to all of the length
long and padded to it. Every variant takes whole steps of a real Trainer (loader, `training_step`,
clipping, AdamW), all of them in turn in one process, so that a busy machine slows all alike. The
naive form is the usual Trainer subclass: `compute_loss` runs the teacher with all outputs on and
has every term in plain operations. Before anything is timed, the losses of variants that stand for
the same mathematics must agree to 1e-4. The second table has a quarter of the texts, four times as
long, and compares attention maps with queries and keys, from which the maps follow: no model has to
give them out then, so both run fused attention. `x time` is the median over the rounds of
variant / student alone; `peak` the highest number of bytes allocated within a step.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
import transformers
from measure.steps import compare_steps, step_arguments
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from taskdistill.tasks.nlp.callback import DistillationCallback
from taskdistill.tasks.nlp.trainer import DistillingTrainer

TITLE = "A step of BERT distillation"
TOKENS, LONG = 128, 512
CLASSES = 3
HEADS = 8
STUDENT: dict[str, Any] = dict(layers=4, width=192, seed=0)
TEACHER: dict[str, Any] = dict(layers=8, width=384, seed=1)
UNIFORM = {1: 2, 2: 4, 3: 6, 4: 8}
TEMPERATURE = 2.0
LOGITS = dict(student="outputs.logits", loss="KLDivergence", temperature=TEMPERATURE)
HIDDEN = dict(student="outputs.hidden_states", loss="HiddenStateTransfer", layers="uniform")
MAPS = dict(student="outputs.attentions", loss="AttentionMap", layers="uniform")
QUERIES_KEYS = dict(student="outputs.queries + outputs.keys", loss="AttentionQK", layers="uniform")
Rows = list[dict[str, Tensor]]


def bert(layers: int, width: int, seed: int, attention: str = "sdpa") -> PreTrainedModel:
    """A classifier, its weights spread wide enough for maps that are not all uniform."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=4 * width,
        num_labels=CLASSES,
        initializer_range=0.05,
        # As a student of attention maps has it: a dropped key looks like one it overlooked.
        attention_probs_dropout_prob=0.0,
    )
    return AutoModelForSequenceClassification.from_config(
        BertConfig(**settings), attn_implementation=attention
    )


def texts(count: int, tokens: int) -> Rows:
    """Token numbers, the first text as long as all are padded to."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(tokens // 4, tokens + 1, (count,), generator=generator)
    lengths[0] = tokens
    made = []
    for index, length in enumerate(lengths):
        mask = (torch.arange(tokens) < length).long()
        ids = torch.randint(1, 30_000, (tokens,), generator=generator) * mask
        row = dict(input_ids=ids, attention_mask=mask, labels=torch.tensor(index % CLASSES))
        made.append({**row, "token_type_ids": torch.zeros_like(ids)})
    return made


class Naive(Trainer):
    """The usual subclass. With `layers`, hidden states and attention maps join the logits."""

    def __init__(self, teacher: PreTrainedModel, layers: Mapping[int, int], **options: Any) -> None:
        super().__init__(**options)
        self.teacher = teacher.to(self.args.device).eval()  # type: ignore[arg-type]
        self.layers = layers
        self.asks = dict(output_hidden_states=True, output_attentions=True) if layers else {}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        output = model(**inputs, **self.asks)
        with torch.no_grad():
            taught = self.teacher(**inputs, **self.asks)
        soft = F.kl_div(
            F.log_softmax(output.logits / TEMPERATURE, -1),
            F.softmax(taught.logits / TEMPERATURE, -1),
            reduction="batchmean",
        )
        loss = output.loss + TEMPERATURE**2 * soft
        mask = inputs["attention_mask"]
        for s, t in self.layers.items():
            projected = model.projections[s - 1](output.hidden_states[s])  # type: ignore[index]
            squares = F.mse_loss(projected, taught.hidden_states[t], reduction="none").mean(-1)
            ours, theirs = output.attentions[s - 1], taught.attentions[t - 1]
            gaps = F.kl_div((ours + 1e-12).log(), theirs, reduction="none").sum(-1).mean(1)
            loss = loss + ((squares + gaps) * mask).sum() / mask.sum() / len(self.layers)
        return (loss, output) if return_outputs else loss


class Bench:
    """Trainers over the same texts, from the same students and teachers.

    Args:
        args: The command line.
        folder: Where Trainers may write.
        rows: The texts of a batch.
        stack: Keeps students in the state that training sets them into.
    """

    def __init__(
        self, args: argparse.Namespace, folder: str, rows: Rows, stack: contextlib.ExitStack
    ) -> None:
        self.stack = stack
        self.options: dict[str, Any] = dict(
            train_dataset=rows,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=len(rows),
                use_cpu=args.device == "cpu",
                report_to=[],
                disable_tqdm=True,
            ),
        )

    def plain(self) -> Trainer:
        """The student alone."""
        return Trainer(model=bert(**STUDENT), **self.options)

    def distilled(self, *pairs: Any) -> Trainer:
        """With the callback; pairs, or one ready recipe."""
        ready = len(pairs) == 1 and "name" in pairs[0]
        callback = DistillationCallback(bert(**TEACHER), pairs[0] if ready else list(pairs))
        trainer = Trainer(model=bert(**STUDENT), callbacks=[callback], **self.options)
        assert isinstance(trainer, DistillingTrainer)
        self.stack.enter_context(trainer.distillation.active())
        return trainer

    def naive(self, layers: Mapping[int, int]) -> Trainer:
        """By the usual subclass; only eager attention gives out its maps."""
        attention = "eager" if layers else "sdpa"
        student = bert(**STUDENT, attention=attention)
        widths = student.config.hidden_size, TEACHER["width"]
        student.projections = nn.ModuleList(nn.Linear(*widths) for _ in layers)
        teacher = bert(**TEACHER, attention=attention)
        return Naive(teacher, layers, model=student, **self.options)


def batches_of(trainer: Trainer) -> Iterator[Any]:
    """The same texts again and again."""
    trainer.is_in_train = True
    trainer.current_gradient_accumulation_steps = 1
    return chain.from_iterable(repeat(trainer.get_train_dataloader()))


def stepper(trainer: Trainer) -> Callable[[], object]:
    """A function that takes one training step, as Trainer.train() does."""
    batches = batches_of(trainer)
    trainer.create_optimizer()
    optimizer: Any
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.optimizer = optimizer

    def step() -> object:
        (batch,), items = trainer.get_batch_samples(batches, 1, trainer.args.device)
        loss = trainer.training_step(model, batch, items)
        trainer._clip_grad_norm(model)
        optimizer.step()
        model.zero_grad()
        return loss

    return step


def first_loss(trainer: Trainer) -> Tensor:
    """What the first batch costs, in training, with the same dropout for all."""
    torch.manual_seed(0)
    (batch,), items = trainer.get_batch_samples(batches_of(trainer), 1, trainer.args.device)
    model: Any = trainer.model
    loss: Any = trainer.compute_loss(model.train(), batch, num_items_in_batch=items)
    return loss.detach()


def check_agreement(trainers: Sequence[Trainer]) -> None:
    """Raise AssertionError unless all have one loss."""
    losses = [first_loss(trainer) for trainer in trainers]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=0.0)


def copy_adapters(naive: Trainer, ours: Trainer) -> None:
    """Give the naive form's projections the weights of the distillation's adapters."""
    projections: Any = naive.model.projections  # type: ignore[union-attr]
    adapters = ours.distillation.partner_parameters  # type: ignore[attr-defined]
    for own, other in zip(projections.parameters(), adapters, strict=True):
        own.data.copy_(other.data)


def usual_texts(bench: Bench) -> dict[str, Trainer]:
    """Logits; then hidden states and attention maps of four layers too."""
    trainers = {
        "student alone": bench.plain(),
        "+ logits, naively": bench.naive({}),
        "+ logits": bench.distilled(LOGITS),
        "+ logits, hidden states, attention maps, naively": bench.naive(UNIFORM),
        "+ logits, hidden states, attention maps": bench.distilled(LOGITS, HIDDEN, MAPS),
    }
    _, *logits, naive, ours = trainers.values()
    copy_adapters(naive, ours)
    check_agreement(logits)
    check_agreement([naive, ours])
    return trainers


def long_texts(bench: Bench) -> dict[str, Trainer]:
    """Attention by its maps, and by what they are made from."""
    trainers = {
        "student alone": bench.plain(),
        "+ attention of four layers, by maps": bench.distilled(MAPS),
        "+ attention of four layers, by queries and keys": bench.distilled(QUERIES_KEYS),
        "+ MiniLM: last layer, values too": bench.distilled(dict(name="minilm", task_weight=1.0)),
    }
    _, *attention, _ = trainers.values()
    check_agreement(attention)
    return trainers


def compare(
    make: Callable[[Bench], dict[str, Trainer]], rows: Rows, args: argparse.Namespace
) -> None:
    """Measure the steps of the trainers that a function makes."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trainers = make(Bench(args, folder, rows, stack))
        compare_steps(TITLE, {name: stepper(t) for name, t in trainers.items()}, args)


def main() -> None:
    args = step_arguments(str(__doc__), batch=8)
    transformers.logging.set_verbosity_error()
    print(f"{TOKENS} tokens a text")
    compare(usual_texts, texts(args.batch, TOKENS), args)
    usual = args.write.read_text(encoding="utf-8") if args.write else ""
    few = argparse.Namespace(**{**vars(args), "batch": max(1, args.batch * TOKENS // LONG)})
    print(f"\n{LONG} tokens a text")
    compare(long_texts, texts(few.batch, LONG), few)
    if args.write:  # each table was written with a title and a command above it
        title, command, head, table = usual.split("\n\n", 3)
        *_, long_head, long_table = args.write.read_text(encoding="utf-8").split("\n\n", 3)
        sections = [
            f"## {tokens} tokens a text\n\n{told}\n\n{rows}"
            for tokens, told, rows in ((TOKENS, head, table), (LONG, long_head, long_table))
        ]
        args.write.write_text("\n\n".join([title, command, "\n".join(sections)]), encoding="utf-8")


if __name__ == "__main__":
    main()
