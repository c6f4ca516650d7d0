"""One callback makes a plain Trainer distil."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...core.errors import ConfigError, did_you_mean
from ...core.taps import guard_hooks
from ...core.teacher import FrozenTeacher
from .distillation import Distillation
from .recipes import RECIPE_KEYS
from .remember import CacheOptions
from .teacher import load_teacher
from .trainer import make_distilling

__all__ = ["DistillationCallback", "DistillationTrainer"]

Teacher = nn.Module | FrozenTeacher | str | Mapping[str, Any]
Cache = CacheOptions | str | Path | Mapping[str, Any] | None


class DistillationCallback(TrainerCallback):
    """Distil a student of ``transformers`` in a plain ``Trainer``.

    ``Trainer(model=student, ..., callbacks=[DistillationCallback(teacher, recipe)])`` is all: the
    terms join the loss and the log (``loss_kd_NAME`` as it enters the sum, ``kd_NAME_raw`` as
    computed), adapters join the optimizer, checkpoints hold the bare student with the adapters in a
    file beside it, evaluation and prediction are untouched. Everything is checked when the Trainer
    is made.

    Terms are means over all positions of an optimizer step: over its batches under gradient
    accumulation, and over processes. (Losses that compare samples with one another are means over
    the batches.) The student's own loss is made so too, where its class does not see to it.

    A callback is told of no trainer; this one finds it among its callers. Where that fails, call
    :meth:`attach`.

    Args:
        teacher: A model of transformers (frozen here), a folder or hub name, or several by name.
        recipe: A list of pairs; ``dict(pairs=..., unit=..., stages=..., task_weight=...)``; the
            name of a ready recipe, or ``dict(name=..., **options)``
            (:data:`.recipes.READY`); a :class:`~taskdistill.core.recipe.Recipe`.
        teacher_tokenizer: To compare vocabularies; by default the one that lies beside the
            teacher, if any. By name where there are several.
        model_class: Auto class to load teachers given by folder or name.
        cache: Folder in which the teachers' answers are kept, so that each is asked once a text and
            not in every epoch; or ``dict(path=..., dtype="fp16", build=True, shard_mb=64)``, see
            :class:`.remember.CacheOptions`. None asks at every step.

    Raises:
        DistillError: If a teacher cannot be loaded. What does not fit the student is told when the
            Trainer is made.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> teacher = BertForSequenceClassification(BertConfig(
        ...     hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        ...     vocab_size=20))
        >>> callback = DistillationCallback(teacher, [
        ...     dict(student="outputs.logits", loss="KLDivergence", temperature=2.0)])
        >>> callback.distillation is None  # until a Trainer is made with it
        True
    """

    def __init__(
        self,
        teacher: Teacher | Mapping[str, Teacher],
        recipe: Any,
        *,
        teacher_tokenizer: Any = None,
        model_class: str = "AutoModel",
        cache: Cache = None,
    ) -> None:
        self.cache = CacheOptions.of(cache)
        self.teachers = {
            name: _loaded(given, model_class) for name, given in _by_name(teacher).items()
        }
        self.recipe = recipe
        several = isinstance(teacher_tokenizer, Mapping) and set(teacher_tokenizer) <= set(
            self.teachers
        )
        self.teacher_tokenizers: dict[str, Any] = (
            dict(teacher_tokenizer)
            if several
            else {next(iter(self.teachers), "teacher"): teacher_tokenizer}
        )
        self.distillation: Distillation | None = None
        """What the trainer goes along with; None until there is one."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], model_class: str = "AutoModel"
    ) -> DistillationCallback:
        """Make it from the ``distill`` entry of a config.

        Args:
            config: ``teacher`` or ``teachers``, and ``pairs`` (``unit``, ``stages``,
                ``task_weight``) or ``recipe``; ``cache``.
            model_class: Auto class to load the teachers by.

        Raises:
            ConfigError: If a key is unknown or missing.
        """
        known = ("teacher", "teachers", *RECIPE_KEYS, "cache")
        if not isinstance(config, Mapping):
            raise ConfigError(f"distill is a mapping (teacher: ..., pairs: ...), not {config!r}.")
        for key in config:
            if key not in known:
                raise ConfigError(
                    f"distill has no {key!r}.{did_you_mean(str(key), known)} It has: "
                    f"{', '.join(known)}."
                )
        if ("teacher" in config) == ("teachers" in config):
            raise ConfigError("distill needs either 'teacher' or 'teachers'.")
        cache = CacheOptions.of(config.get("cache"))
        if "teachers" in config:
            several = config["teachers"]
            if not isinstance(several, Mapping) or not several:
                raise ConfigError(f"distill.teachers maps names to teachers, not {several!r}.")
            teacher = {n: load_teacher(source, model_class) for n, source in several.items()}
        else:
            teacher = load_teacher(config["teacher"], model_class)
        recipe = {key: config[key] for key in RECIPE_KEYS if key in config}
        return cls(teacher, recipe, model_class=model_class, cache=cache)

    def attach(self, trainer: Trainer) -> None:
        """Make a trainer distil; called by itself where the callback is given to ``Trainer``.

        Raises:
            DistillError: If student, teachers and recipe do not fit together.
        """
        if self.distillation is not None:
            raise ConfigError(
                "This DistillationCallback serves a Trainer already. Make one for each."
            )
        model = trainer.accelerator.unwrap_model(trainer.model)
        self.distillation = Distillation(
            model,  # type: ignore[arg-type]
            self.teachers,
            self.recipe,
            tokenizer=trainer.processing_class,
            teacher_tokenizers=self.teacher_tokenizers,
            seed=trainer.args.seed,
            cache=self.cache,
        )
        make_distilling(trainer, self.distillation)

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Find the trainer, which is just being made, and attach to it."""
        trainer = _calling_trainer(self)
        if trainer is None:
            raise ConfigError(
                "DistillationCallback was made known by no Trainer it could find. Call "
                "callback.attach(trainer) before trainer.train()."
            )
        self.attach(trainer)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Refuse to be added to a trainer without being attached: nothing would be distilled."""
        if self.distillation is None:
            raise ConfigError(
                "DistillationCallback was added to a Trainer that exists already. Give it to "
                "Trainer(callbacks=[...]), or call callback.attach(trainer) before training."
            )
        if args.torch_compile:
            guard_hooks()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Hold the layers that are not in turn, and what the stage does not train."""
        plan = self.distillation
        if plan is not None:
            plan.holding.drop_gradients()
        if plan is not None and plan.progressive is not None:
            plan.progressive.before_step(kwargs["optimizer"], plan.partner_parameters)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Give the scheduler its learning rates back."""
        plan = self.distillation
        if plan is not None and plan.progressive is not None:
            plan.progressive.after_step(kwargs["optimizer"])


class DistillationTrainer(Trainer):
    """A Trainer with its distillation given as arguments.

    The same as ``Trainer(callbacks=[DistillationCallback(teacher, recipe)])``. Derive from it where
    a callback cannot reach: ``teacher_inputs(inputs)`` returns, by the teacher's name, what it is
    asked instead of the student's batch.

    Args:
        *args: As for ``Trainer``.
        teacher: As for :class:`DistillationCallback`.
        recipe: Likewise.
        teacher_tokenizer: Likewise.
        cache: Likewise.
        **kwargs: As for ``Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        teacher: Teacher | Mapping[str, Teacher],
        recipe: Any,
        teacher_tokenizer: Any = None,
        cache: Cache = None,
        **kwargs: Any,
    ) -> None:
        callback = DistillationCallback(
            teacher, recipe, teacher_tokenizer=teacher_tokenizer, cache=cache
        )
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), callback]
        super().__init__(*args, **kwargs)

    def teacher_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """What single teachers are asked, by name, instead of the student's batch; none by default.

        Args:
            inputs: The student's batch.
        """
        return {}


def _by_name(teacher: Teacher | Mapping[str, Teacher]) -> dict[str, Teacher]:
    if isinstance(teacher, Mapping) and "path" not in teacher:
        return dict(teacher)
    return {"teacher": teacher}  # type: ignore[dict-item]


def _loaded(teacher: Teacher, model_class: str) -> nn.Module | FrozenTeacher:
    if isinstance(teacher, (nn.Module, FrozenTeacher)):
        return teacher
    return load_teacher(teacher, model_class)


def _calling_trainer(callback: TrainerCallback) -> Trainer | None:
    """The trainer that is calling a callback: an event is not told of it."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            handler = getattr(caller, "callback_handler", None)
            if handler is not None and callback in handler.callbacks:
                return caller
        frame = frame.f_back
    return None
