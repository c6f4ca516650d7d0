"""Image translators as the distiller sees them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from ...core.distiller import Context
from ...core.errors import CheckpointError, ConfigError, TeacherError, did_you_mean
from ...core.recipe import resolve_loss
from ...core.taps import Captured
from ...core.teacher import load_weights
from ..openmm.adapter import TASK_ADAPTERS, TaskAdapter
from ..openmm.config import seed_data
from ..openmm.teacher import SAFE_GLOBALS, read_mm_checkpoint
from .hooks import SIDE_ENTRY
from .models import SuperMobileResnetGenerator
from .models.release import release_names
from .models.transfer import transfer_channels
from .preflight import check_config_data
from .translation import ImageTranslator, TranslationModel, in_channels, out_channels

__all__ = ["TranslatorAdapter"]

_INIT = ("generator", "discriminator")


@TASK_ADAPTERS.register_module(name="gan")
class TranslatorAdapter(TaskAdapter):
    """Compare the generators of two translators, image by image or at layers between.

    The student is an :class:`.ImageTranslator` (one direction: the paper distils without a cycle);
    the teacher any translator of the same channels, a CycleGAN with its ``generator``. Both call it
    ``generator``, so that one tap (``generator.model.9``) means both.

    ``distill.init`` lets the student begin from its teacher, as the authors' code does:
    ``generator="teacher"`` takes the teacher's most important channels
    (:func:`.models.transfer.transfer_channels`), ``discriminator="teacher"`` the discriminator that
    was trained with it, out of the teacher's checkpoint; either may be the path of a checkpoint
    instead (a training checkpoint of ours or a bare ``*_net_G.pth`` / ``*_net_D.pth``).
    """

    outputs = {"image": "the translated image, (B, C, H, W) in [-1, 1]"}

    # -- before training -----------------------------------------------------------------------

    @classmethod
    def check_data(cls, cfg: Config) -> None:
        """See :func:`.preflight.check_config_data`."""
        check_config_data(cfg)

    @classmethod
    def prepare(cls, cfg: Config) -> None:
        """Keep discriminators in checkpoints, and make runs repeatable without a teacher too."""
        hooks = [*(cfg.get("custom_hooks") or []), ConfigDict(type="AdversaryHook")]
        if cfg.get("distill") is None:
            hooks.append(ConfigDict(type="RepeatableHook"))
            seed_data(cfg)
        cfg.custom_hooks = hooks

    def probe(self) -> Tensor:
        """See the base class."""
        channels = in_channels(self.student.generator)  # type: ignore[arg-type]
        return torch.zeros(1, channels, self.probe_size, self.probe_size)

    def check(self, outputs: Collection[str], regions: Collection[str]) -> None:
        """Refuse networks whose images cannot be compared; see the base class."""
        if not isinstance(self.student, ImageTranslator):
            raise TeacherError(
                f"The student is a {type(self.student).__name__}; expected one generator in one "
                "direction (ImageTranslator, Pix2Pix). A student of a CycleGAN is an "
                "ImageTranslator: it learns from the teacher's images, without a cycle."
            )
        for pair in self.recipe.pairs:
            loss = resolve_loss(pair.loss) if isinstance(pair.loss, str) else pair.loss
            if getattr(loss, "adversarial", False):
                raise ConfigError(
                    f"Pair {pair.name!r}: the student has a discriminator of its own, whose term "
                    f"is in its losses already; {pair.loss} would be a second one. Leave it out."
                )
            wide = isinstance(self.student.generator, SuperMobileResnetGenerator)
            if wide and not pair.is_output and pair.adapter not in ("sliced", "resize"):
                raise ConfigError(
                    f"Pair {pair.name!r}: the student is a super-network whose layers change their "
                    "width from step to step. Write adapter='sliced' in that line."
                )
        for name, teacher in self.teachers.items():
            if not isinstance(teacher, TranslationModel):
                raise TeacherError(
                    f"Teacher {name!r} is a {type(teacher).__name__}; expected an image translator."
                )
            for which, count in (("takes", in_channels), ("gives", out_channels)):
                ours, theirs = count(self.student.generator), count(teacher.generator)
                if ours != theirs:
                    raise TeacherError(
                        f"Teacher {name!r} {which} images of {theirs} channels, the student of "
                        f"{ours}. Take a teacher of the same task."
                    )

    def check_init(self, init: Mapping[str, Any], teachers: Mapping[str, Any]) -> None:
        """See the base class."""
        for key, value in init.items():
            if key not in _INIT:
                raise ConfigError(f"distill.init has no {key!r}.{did_you_mean(key, _INIT)}")
            if value is None or value == "teacher":
                continue
            if not isinstance(value, str):
                raise ConfigError(
                    f"distill.init.{key}={value!r}; expected 'teacher', a checkpoint, or None."
                )
            if not os.path.isfile(value):
                raise CheckpointError(
                    f"distill.init.{key}={value!r} does not exist (looked from {os.getcwd()!r}); "
                    "expected 'teacher' or the path of a checkpoint."
                )
        source = init.get("discriminator")
        if source == "teacher":
            source = next(iter(teachers.values()))["checkpoint"]
        # Read now, so that a wrong file is told before the data is loaded.
        self._discriminator = None if source is None else self._discriminator_state(source)

    def initialise(self, init: Mapping[str, Any], teachers: Mapping[str, nn.Module]) -> None:
        """Begin from the teacher's channels and discriminator; see the class."""
        student = self.student
        assert isinstance(student, ImageTranslator)
        source = init.get("generator")
        if source == "teacher":
            teacher: Any = next(iter(teachers.values()))
            transfer_channels(teacher.generator, student.generator)
        elif source is not None:
            load_weights(student, source, safe_globals=SAFE_GLOBALS, names=student.checkpoint_names)
        if self._discriminator is not None:
            student.discriminator.load_state_dict(self._discriminator, strict=True)

    def _discriminator_state(self, path: str) -> Mapping[str, Any]:
        """Read the discriminator of a checkpoint, and see that it fits."""
        assert isinstance(self.student, ImageTranslator)
        checkpoint = read_mm_checkpoint(os.path.expanduser(path))
        side = checkpoint.get(SIDE_ENTRY)
        if side is not None:
            state = side["discriminators"]["discriminator"]
        elif isinstance(checkpoint.get("state_dict", checkpoint), Mapping):
            state = release_names(_weights(checkpoint), self.student.discriminator)
        else:
            state = {}
        own = self.student.discriminator.state_dict()
        wrong = [k for k in own if k not in state or state[k].shape != own[k].shape]
        wrong += [key for key in state if key not in own]
        if wrong:
            raise CheckpointError(
                f"{path!r} holds no discriminator of the student's shape: "
                f"{len(wrong)} of {len(own)} entries differ, {wrong[0]!r} first. The student's is "
                "built like the teacher's where both configs say the same of it (width, layers, "
                "norm, conditional); or leave distill.init.discriminator out."
            )
        return state

    # -- one batch -----------------------------------------------------------------------------

    @property
    def reads(self) -> list[str]:
        """The generator, whose output is the image."""
        return ["generator"]

    def forward(self, model: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return what maps images to the translated ones, by the output's name."""
        generator: Any = model.generator
        return lambda images: {"image": generator(images)}

    def name_outputs(self, raw: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """See the base class."""
        return raw

    def context(
        self,
        seen: Captured,
        asked: Mapping[str, Any],
        data_samples: Any,
        outputs: Collection[str],
        regions: Collection[str],
    ) -> Context:
        """See the base class."""
        student = {"image": seen.tensors("generator")[0]} if outputs else {}
        real = torch.stack([sample.real for sample in data_samples])
        return Context(
            student, {name: raw or {} for name, raw in asked.items()}, {}, {"image": real}
        )


def _weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    return checkpoint.get("state_dict", checkpoint)
