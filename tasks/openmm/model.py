"""The student as mmengine trains it while it is being distilled."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.distiller import Distiller, check_finite
from ...core.errors import ConfigError, NonFiniteLossError, did_you_mean
from ...core.recipe import Recipe
from ...core.stages import Holding
from ...core.taps import Captured
from .adapter import adapter_of_scope, bare
from .checked import CheckedModel
from .optim import CRITIC, STUDENT, AlternatingOptimWrapper
from .remember import CacheOptions, Remembered
from .steps import average_gradients, gradient_norm, training_progress
from .teacher import build_teacher

__all__ = ["DistilledModel", "student_of"]

_OPTIONS = (
    "teacher",
    "teachers",
    "pairs",
    "unit",
    "stages",
    "task_weights",
    "assignment",
    "probe_size",
    "critic",
    "init",
    "cache",
)


@MODELS.register_module()
class DistilledModel(CheckedModel):
    """A student detector (segmenter, ...) that also answers for its teacher.

    Behaves as the student everywhere: prediction and evaluation are the student's own, attributes
    are looked up on it, and ``state_dict`` has exactly its keys, so every checkpoint loads into
    the plain model. Only ``mode="loss"`` adds the terms of the recipe, two figures each:
    ``loss_kd_NAME`` (weighted, part of the sum) and ``kd_NAME_raw``.

    Args:
        student: The student's own model config.
        distill: ``teacher`` (or ``teachers``, by name), ``pairs``, and optionally ``unit``,
            ``stages``, ``task_weights`` (factors on the student's own losses, by the names they
            have in the log), ``assignment`` (labels from a teacher, where the task knows a way: see
            :meth:`.TaskAdapter.check_assignment`), ``probe_size`` (height and width in pixels of
            the zero image from which adapters take their shapes; 128 by default), ``critic`` (see
            :func:`.config.critic_options`; read when the optimizers are made), ``init`` (how
            the student begins from its teacher, where the
            task knows a way: see :meth:`.TaskAdapter.initialise`) and ``cache`` (what the teachers
            say of the training data is kept and read, see :class:`.CacheOptions`).
        scope: Registry scope, or name of the task, that decides the task.

    Raises:
        ConfigError, TapError, TeacherError, CheckpointError, ShapeError: If student, teacher and
            recipe do not go together; before any training.
    """

    student: Any
    remembered: Remembered | None = None
    """What the teachers said of the training data, where that is kept; from the first step on."""

    def __init__(
        self, student: dict[str, Any] | nn.Module, distill: Mapping[str, Any], scope: str
    ) -> None:
        for key in distill:
            if key not in _OPTIONS:
                raise ConfigError(f"distill has no {key!r}.{did_you_mean(key, _OPTIONS)}")
        assignment = distill.get("assignment")
        recipe = Recipe.from_config(
            distill.get("pairs", ()),
            distill.get("unit", "epoch"),
            distill.get("stages", ()),
            may_be_empty=bool(assignment),
        )
        self._task_weights = _checked_weights(distill.get("task_weights") or {})
        # Of the batches so far: one without a region of interest lacks some.
        self._own_losses: set[str] = set()
        for pair in recipe.pairs:
            if "loss" in pair.name:
                raise ConfigError(
                    f"Pair name {pair.name!r} contains 'loss', by which mmengine picks what to add "
                    "up; its raw figure would be counted. Choose another name."
                )
        module: Any = student if isinstance(student, nn.Module) else MODELS.build(student)
        super().__init__(data_preprocessor=module.data_preprocessor)
        self.student = module
        adapter = adapter_of_scope(scope).of(module)
        configs = {
            name: adapter.teacher_config(cfg, name, module)
            for name, cfg in _teacher_configs(distill).items()
        }
        teachers = {name: build_teacher(cfg, module, name) for name, cfg in configs.items()}
        network = bare(module)
        # A teacher of features alone may have another head.
        compared = {
            name: teachers[name].model
            for name, pairs in recipe.by_teacher(teachers).items()
            if any(pair.is_output or pair.region in adapter.teacher_regions for pair in pairs)
        }
        size = distill.get("probe_size", 128)
        own = {name: t.preprocess for name, t in teachers.items() if t.preprocess is not None}
        self.task = adapter(module, compared, recipe, size, own)
        whole = set(compared)
        if assignment:
            models = {name: teacher.model for name, teacher in teachers.items()}
            whole.add(self.task.check_assignment(assignment, models))
        self.task.check_names(recipe.outputs, recipe.regions)
        self.task.check(recipe.outputs, recipe.regions)
        self.cache_options = self._checked_cache(distill.get("cache"), teachers)
        self.distiller = Distiller(
            network,
            teachers,
            recipe,
            outputs=self.task.name_outputs,
            reads=self.task.reads,
            default_region=self.task.default_region,
            whole=whole,
        )
        self.distiller.setup(
            self.task.forward(module),
            lambda name: self.task.forward(teachers[name].network),
            self.task.probe(),
            trial=((self.task.trial(),), {}),
        )
        self.holding = Holding(self.distiller)
        self._init: Mapping[str, Any] = distill.get("init") or {}
        self.task.check_init(self._init, configs)
        if distill.get("critic") and not self.distiller.critic_parameters():
            raise ConfigError(
                "distill.critic says how a discriminator is trained, but no pair has one; add "
                "dict(student='outputs.logits', loss='Holistic', ...), or leave it out."
            )
        # The critics learn by a backward pass of their own, which data-parallel training of the
        # student must neither wait for nor count as missing; `critic_step` averages for them.
        critics = {id(p) for p in self.distiller.critic_parameters()}
        critics |= {id(p) for p in getattr(module, "adversary_parameters", list)()}
        self._ddp_params_and_buffers_to_ignore = [
            name for name, p in self.named_parameters() if id(p) in critics
        ]
        # Checkpoints hold the student under its own names; adapters go to a side entry.
        self.register_state_dict_post_hook(_export_student)
        self.register_load_state_dict_pre_hook(_import_student)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Protocols (copying, pickling) are this class's own business, not the student's.
            if name == "student" or name.startswith("__"):
                raise
            return getattr(super().__getattr__("student"), name)

    def _checked_cache(
        self, cache: Mapping[str, Any] | None, teachers: Collection[str]
    ) -> CacheOptions | None:
        """Read ``distill.cache``; refuse teachers whose answers are not of the pictures alone."""
        if cache is None:
            return None
        options = CacheOptions.from_config(cache)
        for name in teachers:
            if reason := self.task.depends_on_student(name):
                raise ConfigError(
                    f"distill.cache: the answers of teacher {name!r} cannot be kept, for {reason}. "
                    "Compare something else, or leave distill.cache out."
                )
        return options

    def init_weights(self) -> None:
        """Initialise the student, from its teacher where ``init`` asks for it."""
        self.student.init_weights()
        if self._init:
            self.task.initialise(
                self._init, {name: t.model for name, t in self.distiller.teachers.items()}
            )

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """Run the student; in ``mode="loss"`` ask the teachers too and add their terms."""
        if mode != "loss":
            return self.student(inputs, data_samples, mode=mode)
        captured, answers = {}, {}
        ahead = self._ask_ahead(inputs, data_samples) if inputs.is_cuda else {}
        with self.distiller.watch() as seen:

            def ask(name: str) -> Any:
                if name not in captured:
                    if self._knows(name):
                        answer = self.remembered.answer(name, inputs)  # type: ignore[union-attr]
                    elif name in ahead:
                        answer = ahead[name]
                        self.distiller.teachers[name].join([*answer[0].values(), answer[1]])
                    else:
                        answer = self.ask_teacher(name, inputs, data_samples, seen)
                    captured[name], answers[name] = answer
                return answers[name]

            losses = self.task.loss(inputs, data_samples, ask)
        losses.update(self.task.untapped_loss(inputs, data_samples))
        for name in self.distiller.teachers:
            ask(name)
        asked = {name: answers[name] for name in self.task.teachers}
        recipe, progress = self.distiller.recipe, training_progress()
        context = self.task.context(
            seen, asked, data_samples, recipe.outputs, self.distiller.regions
        )
        context.images = inputs
        terms = self.distiller.terms(seen, captured, context, progress)
        self._own_losses |= losses.keys()
        _check_names(self._task_weights, self._own_losses)
        losses = _weighed(losses, self._task_weights, recipe.task_weight(progress))
        if self.remembered is not None:
            self.remembered.verify()
        device = inputs.device
        for name, term in terms.items():
            losses[f"loss_kd_{name}"] = term.weighted.to(device)
            losses[f"kd_{name}_raw"] = term.raw.to(device)
        return losses

    def _knows(self, name: str) -> bool:
        return self.remembered is not None and self.remembered.knows(name)

    def _ask_ahead(self, inputs: Tensor, data_samples: Any) -> dict[str, tuple[Captured, Any]]:
        """Let teachers begin before the student, and run beside it, where they do not need it."""
        ahead = {}
        for name, teacher in self.distiller.teachers.items():
            if not self._knows(name) and self.task.depends_on_student(name) is None:
                with teacher.beside(inputs.device):
                    ahead[name] = self.ask_teacher(name, inputs, data_samples)
        return ahead

    def ask_teacher(
        self, name: str, inputs: Tensor, data_samples: Any, seen: Captured | None = None
    ) -> tuple[Captured, Any]:
        """Run one teacher on the student's batch.

        Args:
            name: The teacher's.
            inputs: The batch, preprocessed for the student.
            data_samples: Its annotations.
            seen: What the student's taps saw on it; None where no teacher reads that
                (:meth:`.TaskAdapter.depends_on_student`).

        Returns:
            What its taps saw, and its output (``None`` after an early exit).
        """
        teacher, extra = self.distiller.teachers[name], {}
        if teacher.preprocess is not None:
            extra["inside"] = self.task.inside(inputs, data_samples)
        forward = self.task.teacher_forward(name, teacher.network, seen, data_samples)
        return self.distiller.ask(name, inputs, forward=forward, **extra)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """One step of the student, then of the critics where the recipe has some."""
        self.holding.update(training_progress())
        if (alternate := getattr(self.student, "alternate", None)) is not None:
            return alternate(self, data, optim_wrapper)
        if not isinstance(optim_wrapper, AlternatingOptimWrapper):
            return super().train_step(data, optim_wrapper)
        figures = super().train_step(data, optim_wrapper[STUDENT])
        figures.update(self.critic_step(optim_wrapper[CRITIC], optim_wrapper.critic_steps))
        return figures

    def critic_step(self, optim_wrapper: OptimWrapper, steps: int = 1) -> dict[str, Tensor]:
        """Let the critics learn from the maps of the student's last step.

        In float32, whatever the student's step ran in: the gradient penalty is differentiated
        twice.

        Args:
            optim_wrapper: The critics' own.
            steps: How often they learn from them.

        Raises:
            NonFiniteLossError: If a critic diverges; its weights are then still finite.
        """
        figures: dict[str, Tensor] = {}
        parameters = self.distiller.critic_parameters()
        for _ in range(steps):
            found = self.distiller.critic_losses()
            if not found:  # every adversarial pair is off
                return {}
            step = training_progress().step + 1
            losses = {f"loss_critic_{name}": values.pop("loss") for name, values in found.items()}
            figures = dict(losses)
            for name, values in found.items():
                figures.update({f"critic_{name}_{what}": v for what, v in values.items()})
            check_finite(losses, step)
            optim_wrapper.backward(optim_wrapper.scale_loss(torch.stack([*losses.values()]).sum()))
            if optim_wrapper.should_update():
                average_gradients(parameters)
                check_finite(_gradient_norms(self.distiller), step)
                optim_wrapper.step()
                optim_wrapper.zero_grad()
        return {name: value.detach() for name, value in figures.items()}

    def parse_losses(self, losses: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses, after stopping at one that is not finite; see the base class."""
        try:
            return super().parse_losses(losses)
        except NonFiniteLossError as error:
            critics = [n for n, loss in self.distiller.losses.items() if _is_adversarial(loss)]
            blamed = [name for name in critics if not losses[f"kd_{name}_raw"].isfinite().all()]
            if not blamed:
                raise
            raise NonFiniteLossError(
                f"{error} The critic of {', '.join(blamed)} may have diverged: lower "
                "distill.critic.optimizer.lr."
            ) from None


def student_of(model: Any) -> Any:
    """Return the network in training without what it may be wrapped in: data-parallel training,
    distillation.
    """
    model = getattr(model, "module", model)
    return model.student if isinstance(model, DistilledModel) else model


def _is_adversarial(loss: nn.Module) -> bool:
    return getattr(loss, "adversarial", False)


def _gradient_norms(distiller: Distiller) -> dict[str, Tensor]:
    found = {}
    for name, loss in distiller.losses.items():
        if _is_adversarial(loss):
            found[f"gradient of critic_{name}"] = gradient_norm(loss.parameters())
    return found


def _teacher_configs(distill: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    if ("teacher" in distill) == ("teachers" in distill):
        raise ConfigError(
            "distill needs either teacher=dict(config=..., checkpoint=...) or "
            "teachers=dict(NAME=dict(...), ...)."
        )
    return distill["teachers"] if "teachers" in distill else {"teacher": distill["teacher"]}


def _checked_weights(weights: Mapping[str, Any]) -> dict[str, float]:
    for name, value in weights.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise ConfigError(
                f"distill.task_weights[{name!r}] is {value!r}; expected a finite number >= 0."
            )
    return dict(weights)


def _check_names(weights: Mapping[str, Any], known: Collection[str]) -> None:
    for name in weights:
        if name not in known:
            names = [key for key in known if "loss" in key]
            raise ConfigError(
                f"distill.task_weights names {name!r}, which is no loss of the student."
                f"{did_you_mean(name, names)} It has: {', '.join(sorted(names))}."
            )


def _weighed(
    losses: Mapping[str, Any], weights: Mapping[str, float], common: float
) -> dict[str, Any]:
    """Scale the student's own losses, each by its factor and all by a common one."""
    factors = {name: weights.get(name, 1.0) * common for name in losses if "loss" in name}
    return {
        name: _scale(value, factors[name]) if factors.get(name, 1.0) != 1.0 else value
        for name, value in losses.items()
    }


def _scale(value: Any, weight: float) -> Any:
    if isinstance(value, Sequence):
        return [v * weight for v in value]
    return value * weight


def _export_student(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Give the student's entries their own names and leave the rest out."""
    ours = f"{prefix}student."
    metadata = getattr(state_dict, "_metadata", {})
    for entries in (state_dict, metadata):
        for key in [k for k in entries if k.startswith(prefix)]:
            if key.startswith(ours):
                entries[prefix + key.removeprefix(ours)] = entries.pop(key)
            elif key.startswith((f"{prefix}distiller", f"{prefix}data_preprocessor")):
                entries.pop(key)


def _import_student(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Undo :func:`_export_student`; adapters keep the values they have."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[f"{prefix}student.{key.removeprefix(prefix)}"] = state_dict.pop(key)
    distiller = module.distiller
    assert isinstance(distiller, nn.Module)
    for key, value in distiller.state_dict().items():
        state_dict[f"{prefix}distiller.{key}"] = value
