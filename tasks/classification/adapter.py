"""Image classifiers as the distiller sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from ...core.distiller import Context
from ...core.errors import ConfigError, TeacherError
from ...core.losses import loss_gradient
from ...core.modes import evaluating
from ...core.recipe import Pair, output_name, resolve_loss
from ...core.taps import Captured
from ..openmm.adapter import TASK_ADAPTERS, TaskAdapter, bare
from ..openmm.config import seed_data
from .classifier import ImageClassifier
from .preflight import check_config_data, sample_shape
from .teachers import full_entry

__all__ = ["ClassifierAdapter"]


@TASK_ADAPTERS.register_module(name="classification")
class ClassifierAdapter(TaskAdapter):
    """Compare classifiers: what they say, and layers, weights and gradients inside them.

    Taps are on the networks themselves (``layer3``, not ``network.layer3``), the teacher's in the
    same way. ``outputs.input_gradient`` is the gradient of the cross-entropy with respect to the
    image (Zagoruyko and Komodakis 2017); it needs the teacher's gradient, too, so its forward is
    run with one, and a second backward pass of the student's.
    """

    outputs = {
        "logits": "the logits, (B, K)",
        "aug_logits": "the student's logits as a part of the wider network that network "
        "augmentation sampled, (B, K); compare them with the teacher's 'outputs.logits'",
        "input_gradient": "the gradient of the cross-entropy with respect to the image, "
        "(B, C, H, W)",
    }
    sparse_outputs = ("logits",)

    # -- before training -----------------------------------------------------------------------

    @classmethod
    def check_data(cls, cfg: Config) -> None:
        """See :func:`.preflight.check_config_data`."""
        check_config_data(cfg)

    @classmethod
    def prepare(cls, cfg: Config) -> None:
        """Keep partners in checkpoints, make runs repeatable without a teacher too, see what the
        teachers are worth, and ask the data for the size of its images.
        """
        hooks = [*(cfg.get("custom_hooks") or []), ConfigDict(type="PartnersHook")]
        model = cfg.model
        if model.get("type") == "MutualClassifier" and model.get("order") == "different":
            peers, loader = model.get("peers", 1), cfg.train_dataloader
            orders = 1 + (peers if isinstance(peers, int) else len(peers))
            if loader.dataset.get("type") != "PeerOrders":
                loader.dataset = ConfigDict(
                    type="PeerOrders", dataset=loader.dataset, orders=orders
                )
        recalibrates = any(hook.get("type") == "RecalibrateHook" for hook in hooks)
        if model.get("type") == "AugmentedClassifier" and not recalibrates:
            hooks.append(ConfigDict(type="RecalibrateHook"))
        if cfg.get("distill") is None:
            hooks.append(ConfigDict(type="RepeatableHook"))
            seed_data(cfg)
        else:
            measured = cfg.distill.pop("measure_teacher", True)
            if measured:
                hooks.append(ConfigDict(type="TeacherAccuracyHook", images=measured))
            if "probe_size" not in cfg.distill:
                with suppress(ConfigError):  # data of another package: the user has to say it
                    cfg.distill.probe_size = list(sample_shape(cfg)[1:])
        cfg.custom_hooks = hooks

    @classmethod
    def teacher_config(
        cls, config: Mapping[str, Any], name: str, student: nn.Module
    ) -> Mapping[str, Any]:
        """See :func:`.teachers.full_entry`."""
        return full_entry(config, name, student)

    def probe(self) -> Tensor:
        """See the base class."""
        size = self.probe_size
        height, width = (size, size) if isinstance(size, int) else size
        mean = getattr(self.student.data_preprocessor, "mean", None)
        channels = 3 if mean is None else len(mean)
        return torch.zeros(1, channels, height, width)

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse networks whose outputs cannot be compared; see the base class."""
        if not isinstance(self.student, ImageClassifier):
            raise TeacherError(
                f"The student is a {type(self.student).__name__}; expected an ImageClassifier "
                "around its network."
            )
        for pair in filter(lambda pair: pair.is_output, self.recipe.pairs):
            self._check_pair(pair)
        if not outputs:
            return
        image = self.probe()
        ours = self.student.check_classes(image.shape[1:])
        for name, teacher in self.teachers.items():
            try:
                # As it is asked in training: a network made for other sizes is told now.
                prepare = self.preprocess.get(name)
                args = ((image,), {}) if prepare is None else prepare((image,), {})
                with torch.no_grad(), evaluating(teacher):
                    logits = teacher(*args[0])
            except (RuntimeError, ValueError, AssertionError) as error:
                raise TeacherError(
                    f"Teacher {name!r} ({type(teacher).__name__}) cannot take the student's images "
                    f"{tuple(image.shape[1:])}: {error}. Where it was trained on larger ones, give "
                    "it a scale, e.g. scale=2."
                ) from error
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise TeacherError(
                    f"Teacher {name!r} ({type(teacher).__name__}) gives a "
                    f"{type(logits).__name__}; expected logits (B, K)."
                )
            if logits.shape[1] != ours:
                raise TeacherError(
                    f"Student and teacher {name!r} differ in the number of classes: student "
                    f"{ours}, teacher {logits.shape[1]}. Their logits cannot be compared; take a "
                    "teacher trained on the same classes, or match features only."
                )
        if "input_gradient" in outputs and self.preprocess:
            raise ConfigError(
                f"outputs.input_gradient compares gradients with respect to one image, but teacher "
                f"{next(iter(self.preprocess))!r} sees it normalised or scaled in another way. "
                "Give the student the teacher's mean and std, and no scale."
            )

    def _check_pair(self, pair: Pair) -> None:
        ours, theirs = output_name(pair.student), output_name(pair.teacher)
        if theirs == "aug_logits":
            raise ConfigError(
                f"Pair {pair.name!r}: a teacher has no aug_logits; write "
                "student='outputs.aug_logits', teacher='outputs.logits'."
            )
        if ours == "aug_logits" and not hasattr(self.student, "untapped_loss"):
            raise ConfigError(
                f"Pair {pair.name!r} compares aug_logits, which an AugmentedClassifier has; the "
                f"student is a {type(self.student).__name__}."
            )
        if (ours == "input_gradient") != (theirs == "input_gradient"):
            raise ConfigError(
                f"Pair {pair.name!r} matches {pair.student!r} with {pair.teacher!r}: a gradient "
                "can only be matched with a gradient."
            )
        loss = resolve_loss(pair.loss) if isinstance(pair.loss, str) else type(pair.loss)
        mixes = getattr(self.student.data_preprocessor, "mixing", None)
        if mixes and "target" in inspect.signature(loss.forward).parameters:
            raise ConfigError(
                f"Pair {pair.name!r}: {loss.__name__} compares with one label an image, but the "
                "student's preprocessor mixes images (mixing=...). Take a loss of the logits "
                "alone (KLDivergence), or leave mixing out."
            )

    # -- one batch -----------------------------------------------------------------------------

    def forward(self, model: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return what maps images to logits, by the output's name."""
        network = bare(model)
        return lambda images: {"logits": network(images)}

    def name_outputs(self, raw: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """See the base class."""
        return raw

    @property
    def _wants_gradient(self) -> bool:
        return "input_gradient" in self.recipe.outputs

    def depends_on_student(self, name: str) -> str | None:
        """See the base class."""
        if self._wants_gradient and name in self.teachers:
            return "outputs.input_gradient needs its gradient of each step's labels"
        return None

    def teacher_forward(
        self, name: str, model: nn.Module, seen: Captured | None, data_samples: Tensor
    ) -> Callable[[Tensor], dict[str, Tensor]]:
        """Ask a teacher about the student's batch, for its input gradient too if that is read."""
        if not (self._wants_gradient and name in self.teachers):
            return self.forward(model)

        def run(images: Tensor) -> dict[str, Tensor]:
            with torch.inference_mode(False), torch.enable_grad():
                images = images.detach().requires_grad_()
                logits = model(images)
                gradient = loss_gradient(_cross_entropies(logits, data_samples), images)
            return {"logits": logits.detach(), "input_gradient": gradient}

        return run

    def loss(
        self, inputs: Tensor, data_samples: Tensor, ask: Callable[[str], Any]
    ) -> dict[str, Tensor]:
        """The student's own losses; what it computed for them is what pairs compare."""
        student = self._student
        if not self._wants_gradient:
            losses = student.loss(inputs, data_samples)
            self._seen = student.take_outputs()
            return losses
        inputs = inputs.detach().requires_grad_()
        losses = student.loss(inputs, data_samples)
        self._seen = student.take_outputs()
        errors = _cross_entropies(self._seen["logits"], data_samples)
        self._seen["input_gradient"] = loss_gradient(errors, inputs, create_graph=True)
        return losses

    def untapped_loss(self, inputs: Tensor, data_samples: Tensor) -> dict[str, Tensor]:
        """The loss of network augmentation, whose second forward no tap shall see."""
        further = getattr(self.student, "untapped_loss", None)
        if further is None:
            return {}
        losses = further(inputs, data_samples)
        self._seen.update(self._student.take_outputs())
        return losses

    @property
    def _student(self) -> ImageClassifier:
        assert isinstance(self.student, ImageClassifier)
        return self.student

    def context(
        self,
        seen: Captured,
        asked: Mapping[str, Any],
        data_samples: Tensor,
        outputs: Collection[str],
        regions: Collection[str],
    ) -> Context:
        """See the base class."""
        student, self._seen = self._seen, {}  # nothing of a graph outlives the step
        for name in outputs:
            if name not in student and name == "aug_logits":
                # The last epochs train without augmentation: the base is all there is.
                student["aug_logits"] = student["logits"]
        teachers = {name: raw or {} for name, raw in asked.items()}
        targets = {"logits": data_samples, "aug_logits": data_samples}
        return Context(student, teachers, {}, targets)

    def inside(self, inputs: Tensor, data_samples: Any) -> Tensor:
        """Images of a batch have one size: there is no padding."""
        return torch.ones_like(inputs[:, 0], dtype=torch.bool)


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """One an image, at temperature 1."""
    return F.cross_entropy(logits.float(), labels, reduction="none")
