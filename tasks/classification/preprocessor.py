"""From batches of pixels to what a network takes; in training, mixtures of images too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torchvision.transforms import v2

from ...core.errors import ConfigError, DataError, ShapeError, did_you_mean
from .regularise import check_number

__all__ = ["ClassifierPreprocessor"]

_MIXTURES = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}


@MODELS.register_module()
class ClassifierPreprocessor(BaseDataPreprocessor):
    r"""Move a batch to the device, normalise its pixels, and mix its images in training.

    .. math:: x = (pixels - mean) / std

    Takes what a loader collates: ``inputs``, uint8 images (C, H, W) as a list or stacked, and
    ``data_samples``, their labels as a list or a tensor, or probabilities (B, K). Gives ``inputs``
    as float32 (B, C, H, W) and ``data_samples`` as int64 (B,), or, soft or mixed, as float32
    (B, K).

    MixUp gives :math:`\lambda x + (1 - \lambda) x'` with :math:`x'` the batch moved on by one
    (batches are shuffled already) and one :math:`\lambda \sim Beta(\alpha, \alpha)` a batch; CutMix
    pastes a rectangle of the share :math:`1 - \lambda`. Labels are mixed alike. A teacher sees the
    mixed images too.

    Args:
        mean: One number a channel, from 0 to 255, or one for all.
        std: Likewise. By default pixels are scaled to 0..1.
        mixing: ``dict(type="MixUp", alpha=...)`` or ``"CutMix"``; of a list of such one is drawn
            for each batch. ``alpha`` is 1 by default (both papers on CIFAR; MixUp on ImageNet 0.2).
        num_classes: K, needed to mix labels; a classifier fills its own in.
        non_blocking: Whether copies to the device run beside the host's work; for pinned memory.

    Raises:
        ConfigError: If an option is unknown or out of range.
        DataError: In use, if images are not uint8, or have another number of channels.
        ShapeError: In use, if the images of a batch differ in shape.

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz: mixup, ICLR 2018 (arXiv 1710.09412). Yun et al.: CutMix,
        ICCV 2019 (arXiv 1905.04899).

    Example:
        >>> white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
        >>> batch = ClassifierPreprocessor()({"inputs": white, "data_samples": [1, 0]})
        >>> batch["inputs"].max(), batch["data_samples"]
        (tensor(1.), tensor([1, 0]))
        >>> mixes = ClassifierPreprocessor(mixing=dict(type="MixUp"), num_classes=3)
        >>> mixes({"inputs": white, "data_samples": [1, 0]}, training=True)["data_samples"].shape
        torch.Size([2, 3])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (255.0,),
        mixing: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        num_classes: int | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        if not mean or len({1, len(mean), len(std)}) > 2 or not std:
            raise ConfigError(
                f"mean has {len(mean)} numbers and std {len(std)}; expected one a channel each."
            )
        for value in mean:
            check_number("mean", value, lambda v: 0 <= v <= 255, "from 0 to 255, as pixels are")
        for value in std:
            check_number("std", value, lambda v: v > 0, "above 0, in pixels of 0 to 255")
        # Not in the state dict: they belong to the config, as with mmengine's own.
        self.register_buffer("mean", torch.tensor(list(mean)).float().view(-1, 1, 1), False)
        self.register_buffer("std", torch.tensor(list(std)).float().view(-1, 1, 1), False)
        configs = [mixing] if isinstance(mixing, Mapping) else list(mixing or ())
        self.mixing = [_mixture(config, num_classes) for config in configs]

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """See the class."""
        batch: dict[str, Any] = dict(data)
        inputs = self.cast_data(_stacked(data["inputs"]))  # type: ignore[arg-type]
        assert isinstance(inputs, Tensor)
        if inputs.dtype != torch.uint8:
            raise DataError(
                f"Expected pixels of torch.uint8 (0 to 255), got {inputs.dtype}. Leave the scaling "
                "to the preprocessor: no ToDtype or Normalize among the transforms."
            )
        if len(self.mean) not in (1, inputs.shape[1]) or len(self.std) not in (1, inputs.shape[1]):
            raise DataError(
                f"Images have {inputs.shape[1]} channels, but mean and std of the preprocessor "
                f"have {len(self.mean)} and {len(self.std)} numbers."
            )
        # Scaled after the copy: a quarter of the bytes travel.
        inputs = (inputs.float() - self.mean) / self.std
        labels = data.get("data_samples")
        if labels is not None:
            labels = torch.as_tensor(labels)
            kind = torch.float32 if labels.is_floating_point() else torch.int64
            labels = labels.to(inputs.device, kind, bool(self._non_blocking))
            if training and self.mixing:
                pick = int(torch.randint(len(self.mixing), ())) if self.mixing[1:] else 0
                inputs, labels = self.mixing[pick](inputs, labels)
        batch.update(inputs=inputs, data_samples=labels)
        return batch


def _mixture(config: Mapping[str, Any], num_classes: int | None) -> v2.Transform:
    options = dict(config)
    kind = str(options.pop("type", None))
    if kind not in _MIXTURES:
        raise ConfigError(
            f"mixing has type={kind!r}, which is none of {', '.join(_MIXTURES)}."
            f"{did_you_mean(kind, _MIXTURES)}"
        )
    alpha = options.pop("alpha", 1.0)
    if options:
        raise ConfigError(f"mixing by {kind} takes 'alpha' alone, got {', '.join(options)}.")
    check_number("alpha", alpha, lambda a: a > 0, "above 0")
    if num_classes is None:
        raise ConfigError(
            f"mixing by {kind} mixes labels too, which needs num_classes. Set num_classes of the "
            "classifier, or of its preprocessor."
        )
    return _MIXTURES[kind](alpha=alpha, num_classes=num_classes)


def _stacked(images: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(images, Tensor):
        return images
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ShapeError(
            f"The images of one batch must have one shape (C, H, W), got "
            f"{', '.join(map(str, shapes[:3]))}{', ...' if shapes[3:] else ''}. Add a transform "
            "that crops or resizes."
        )
    return torch.stack(list(images))
