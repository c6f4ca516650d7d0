"""The Trainer of transformers with distillation in its loss, optimizer, log and checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer

from ...core.distiller import check_finite
from ...core.errors import CacheError, ConfigError
from ...core.modes import evaluating
from ...core.recipe import Progress
from ...core.taps import flatten_tensors
from .caching import ensure
from .distillation import STATE_FILE, Distillation
from .text_ids import POSITIONS, PositionsCollator

__all__ = ["DistillingTrainer", "make_distilling"]

logger = logging.getLogger(__name__)

# A loss that heeds the number of items halves when that number doubles.
_HALF, _SAME = (0.49, 0.51), (0.99, 1.01)


def make_distilling(trainer: Trainer, distillation: Distillation) -> None:
    """Make a trainer distil, whatever class it is of.

    Its class becomes a subclass of what it was, :class:`DistillingTrainer` first, so that whatever
    a user's own trainer overrides still holds.

    Raises:
        ConfigError: If it runs in a way that distillation cannot go along with.
    """
    _check_setting(trainer, distillation)
    kind = type(trainer)
    if not isinstance(trainer, DistillingTrainer):
        trainer.__class__ = type(f"Distilling{kind.__name__}", (DistillingTrainer, kind), {})
    assert isinstance(trainer, DistillingTrainer)
    trainer.distillation = distillation
    trainer.reset_distillation()


def _check_setting(trainer: Trainer, distillation: Distillation) -> None:
    if trainer.args.n_gpu > 1:
        raise ConfigError(
            f"This process sees {trainer.args.n_gpu} GPUs and would use DataParallel, under which "
            "layers cannot be read. Start it with torchrun or accelerate launch, or set "
            "CUDA_VISIBLE_DEVICES to one."
        )
    if trainer.is_deepspeed_enabled:
        raise ConfigError("Distillation does not run under DeepSpeed; use DDP or FSDP.")
    if trainer.is_fsdp_enabled and distillation.partner_parameters:
        raise ConfigError(
            "Under FSDP the student's layers are sharded, and adapters beside it could not be "
            "saved with them. Use a recipe without adapters (logits, attentions, relations), equal "
            "widths with adapter='none', or DDP."
        )


class DistillingTrainer(Trainer):
    """What a trainer does with a distillation. Made by :func:`make_distilling`."""

    distillation: Distillation

    def reset_distillation(self) -> None:
        """Forget what was counted of an earlier training."""
        self._totals: Tensor | None = None
        self._heeds_items: bool | None = None
        self._sums: Tensor | None = None
        self._summed_steps = 0

    # -- data -------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Keep the columns that only the teachers take; evaluation does without them."""
        self._set_signature_columns_if_needed()
        with self._teacher_columns_kept(), self._positions_on_the_way():
            return super().get_train_dataloader()

    @contextmanager
    def _teacher_columns_kept(self) -> Iterator[None]:
        self._set_signature_columns_if_needed()
        own = self._signature_columns
        assert own is not None
        extra = [c for c in self.distillation.teacher_columns if c not in own]
        self._signature_columns = [*own, *extra]
        try:
            yield
        finally:
            self._signature_columns = own

    @contextmanager
    def _positions_on_the_way(self) -> Iterator[None]:
        """Let whoever makes the batches look up which texts they are of."""
        # Where a trainer of the user's own may change a batch, it is looked at when it is used.
        steps = {"training_step", "_prepare_inputs", "_prepare_input", "get_batch_samples"}
        users = [kind for kind in type(self).__mro__ if kind not in (DistillingTrainer, Trainer)]
        plain = not any(steps & set(vars(kind)) for kind in users)
        remembered, own = self.distillation.remembered, self.data_collator
        if remembered and self.is_in_train and plain and not self.accelerator.dispatch_batches:
            tables = {name: (found.reader, found.table) for name, found in remembered.items()}
            self.data_collator = PositionsCollator(own, tables)
        try:
            yield
        finally:
            self.data_collator = own

    def training_source(self) -> tuple[Any, Callable[[list[Any]], Any]]:
        """The training data with the columns that training reads, and what makes batches of them.

        Raises:
            CacheError: If there are no training data.
        """
        data, collator = self.train_dataset, self.data_collator
        if data is None:
            raise CacheError("The Trainer has no train_dataset of which to remember the answers.")
        with self._teacher_columns_kept():
            if isinstance(data, datasets.Dataset):
                data = self._remove_unused_columns(data, description="training")
            else:
                collator = self._get_collator_with_removed_columns(collator, "training")
        return data, collator

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> Any:
        """Count the positions of all batches of the coming step, over all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counted = self.distillation.count(batches)
        if counted is not None:
            counted = self.accelerator.reduce(counted.to(device), "mean")
        self._totals = counted  # type: ignore[assignment]
        # Adapters are not part of the model, whose gradients are cleared by the Trainer.
        self.distillation.distiller.zero_grad(set_to_none=True)
        if self.distillation.progressive is not None:
            self.distillation.progressive.at(self.state.global_step)
        return batches, items

    # -- loss -------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Add the terms of the recipe to the student's loss, in training."""
        if not (self.is_in_train and model.training):
            # Of one batch the mean is wanted: given the number of items, a head that does not heed
            # it would be told as many times too large as there are processes.
            return super().compute_loss(model, inputs, return_outputs)
        plan = self.distillation
        positions = inputs.get(POSITIONS)
        inputs = {key: value for key, value in inputs.items() if key != POSITIONS}
        own = plan.student_inputs(inputs)
        progress = Progress(self.state.global_step, float(self.state.epoch or 0.0))
        plan.holding.update(progress)
        with plan.distiller.watch() as seen:
            loss, output = super().compute_loss(
                model, dict(own), return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        loss = self._per_item(model, own, loss, num_items_in_batch)
        ask = getattr(self, "teacher_inputs", None)  # a user's own trainer may have it
        others = None if ask is None else ask(inputs)
        if others and plan.remembered:
            raise CacheError(
                f"teacher_inputs gave teacher {next(iter(others))!r} inputs of its own, of which "
                "nothing is remembered. Leave cache out."
            )
        with self.accelerator.autocast():
            terms = plan.terms(seen, output, inputs, self._totals, progress, others, positions)
        batches = self.current_gradient_accumulation_steps
        # What is averaged over this batch alone counts as one of the batches of the step.
        shares = [1.0 if plan.is_exact(p) else 1.0 / batches for p in plan.plan.recipe.pairs]
        raw = [term.raw * share for term, share in zip(terms.values(), shares, strict=True)]
        weighted = [
            term.weighted * share for term, share in zip(terms.values(), shares, strict=True)
        ]
        named = {"loss": loss, **dict(zip(terms, weighted, strict=True))}
        check_finite(named, self.state.global_step)
        # The Trainer divides what it takes for a mean over one batch.
        scale = 1.0 if self._is_scaled(num_items_in_batch) else float(batches)
        self._add([loss / scale, *raw], [loss / scale, *weighted])
        weight = plan.plan.task_weight * plan.plan.recipe.task_weight(progress)
        total = scale * torch.stack(weighted).sum()
        if weight or not total.requires_grad:
            total = total + weight * loss
        if self._in_parallel() and not (weight and plan.progressive is None):
            # Data-parallel training waits for a gradient of all that the outputs were made from.
            total = total + _touch(model, output)
        return (total, output) if return_outputs else total

    def _is_scaled(self, items: Any) -> bool:
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        heeded = self.model_accepts_loss_kwargs and items is not None
        return bool(heeded or self.compute_loss_func is not None)

    def _per_item(
        self, model: nn.Module, inputs: dict[str, Any], loss: Tensor, items: Any
    ) -> Tensor:
        """Make the student's loss a share of the mean over all items of the step.

        Many heads take the number of items and do not heed it: the mean over one batch that they
        give would count as often as there are batches (and processes) in the step.
        """
        labels = inputs.get("labels")
        if items is None or not isinstance(labels, Tensor):
            return loss
        applies = (
            self.model_accepts_loss_kwargs
            and self.loss_is_scaled_for_ga is None
            and self.compute_loss_func is None
            and self.label_smoother is None
            and super().compute_loss.__func__ is Trainer.compute_loss  # a user's own knows better
        )
        if not applies:
            return loss
        if self._heeds_items is None:
            self._heeds_items = self._probe(model, inputs, items)
        return loss * (labels.ne(-100).sum() / items) if self._heeds_items is False else loss

    def _probe(self, model: nn.Module, inputs: dict[str, Any], items: Any) -> bool | None:
        """Whether the loss heeds the number of items, tried out on one batch.

        None where that batch cannot tell: its loss is 0, or is neither halved nor the same.
        """
        if self._in_parallel():
            # Asked inside: the wrapper would send buffers around between forward and backward.
            model = self.accelerator.unwrap_model(model)
        with torch.no_grad(), evaluating(model):
            losses: list[Any] = [
                Trainer.compute_loss(self, model, dict(inputs), num_items_in_batch=n)
                for n in (items, 2 * items)
            ]
        once, twice = (loss.item() for loss in losses)
        ratio = twice / once if once else 0.0
        if _SAME[0] < ratio < _SAME[1]:
            logger.info(
                "The loss of %s does not heed the number of items in a step; it is scaled, so that "
                "several small batches count as one large one.",
                type(self.accelerator.unwrap_model(model)).__name__,
            )
            return False
        return True if _HALF[0] < ratio < _HALF[1] else None

    def _in_parallel(self) -> bool:
        return self.accelerator.distributed_type in (
            DistributedType.MULTI_CPU,
            DistributedType.MULTI_GPU,
        )

    # -- optimizer --------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Add the adapters, with a weight decay as for the model's own."""
        optimizer = super().create_optimizer(model)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self.distillation.progressive is not None and self.distillation.plan.layer_stages:
            self.distillation.progressive.split_groups(optimizer)
        partners = [p for p in self.distillation.partner_parameters if id(p) not in known]
        if partners and self.lr_scheduler is not None and not self._created_lr_scheduler:
            raise ConfigError(
                "The recipe trains adapters, which have to enter the optimizer before its "
                "scheduler is made. Give Trainer optimizers=(optimizer, None), or neither."
            )
        for decay, group in (
            (self.args.weight_decay, [p for p in partners if p.ndim > 1]),
            (0.0, [p for p in partners if p.ndim <= 1]),
        ):
            if group:
                optimizer.add_param_group({"params": group, "weight_decay": decay})
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        """Average the adapters' gradients over processes, once a step."""
        loss = super().training_step(model, inputs, *args, **kw)
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for parameter in self.distillation.partner_parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.accelerator.num_processes
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the adapters by themselves: the student's norm is as without them."""
        norm = super()._clip_grad_norm(model)
        partners = [p for p in self.distillation.partner_parameters if p.grad is not None]
        if partners:
            torch.nn.utils.clip_grad_norm_(partners, self.args.max_grad_norm)
        return norm

    # -- log --------------------------------------------------------------------------------------

    def _add(self, raw: list[Tensor], weighted: list[Tensor]) -> None:
        now = torch.stack([torch.stack(raw), torch.stack(weighted)]).detach().float()
        self._sums = now if self._sums is None else self._sums + now
        if self.accelerator.sync_gradients:
            self._summed_steps += 1

    def log(self, logs: dict[str, float], *args: Any, **kw: Any) -> None:
        """Add every term, weighted and raw, and the student's own loss before its weight.

        All are averages over the steps since the last time.
        """
        if "loss" in logs and self._sums is not None:
            sums: Any = self.accelerator.reduce(self._sums, "mean")
            means = (sums / max(1, self._summed_steps)).tolist()
            logs["task_loss"] = means[0][0]
            names = [pair.name for pair in self.distillation.plan.recipe.pairs]
            for name, raw, weighted in zip(names, *(row[1:] for row in means), strict=True):
                logs[f"loss_kd_{name}"] = weighted
                logs[f"kd_{name}_raw"] = raw
            self._sums, self._summed_steps = None, 0
        super().log(logs, *args, **kw)

    # -- the whole training, and checkpoints ------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kw: Any) -> Any:
        plan = self.distillation
        if self.accelerator.unwrap_model(self.model) is not plan.student:
            raise ConfigError(
                "The student is not the model that distillation was set up for (model_init makes a "
                "new one for every trial). Make one Trainer for each student."
            )
        self.reset_distillation()
        if plan.cache is not None:
            ensure(self)
        with plan.active():
            if plan.progressive is not None:
                plan.progressive.start()
            try:
                return super()._inner_training_loop(*args, **kw)
            finally:
                if plan.progressive is not None:
                    plan.progressive.stop()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            path = Path(output_dir) / STATE_FILE
            part = path.with_suffix(".part")
            torch.save(self.distillation.state_dict(), part)
            os.replace(part, path)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.distillation.restore(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)


def _touch(model: nn.Module, output: Any) -> Tensor:
    """Zero, with a gradient of zero for every parameter that data-parallel training waits for."""
    outputs = [tensor for tensor in flatten_tensors(output) if tensor.requires_grad]
    parts = [tensor.sum() for tensor in outputs]
    if not getattr(model, "find_unused_parameters", False):
        reached = _parameters_behind(outputs)
        parts += [p.sum() for p in model.parameters() if p.requires_grad and id(p) not in reached]
    return torch.stack(parts).sum() * 0.0


def _parameters_behind(tensors: list[Tensor]) -> set[int]:
    """Identities of the parameters that tensors were computed from."""
    waiting, seen, found = [tensor.grad_fn for tensor in tensors], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return found
