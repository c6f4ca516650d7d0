"""Network augmentation of a classifier: the base is trained as a slice of wider networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError
from ...core.netaug import NetAug
from ..openmm.steps import training_progress
from .classifier import NETWORK, ImageClassifier
from .regularise import add_drops, check_number

__all__ = ["AugmentedClassifier"]

_WIDE = "wide."
"""Of the wide network's tensors in :meth:`AugmentedClassifier.partner_state`."""


@MODELS.register_module()
class AugmentedClassifier(ImageClassifier):
    r"""A classifier that is trained with network augmentation.

    .. math:: L = \mathrm{CE}(z_{base}, y) + \alpha\, \mathrm{CE}(z_{[base, i]}, y)

    Every step draws one wider network; see :class:`~taskdistill.core.netaug.NetAug`. The state dict
    has the base's names and shapes, as in plain training. The weights around it are partners
    (:meth:`partner_state`). Prediction is the base's.

    :attr:`network` is the wide copy at the base setting, so that taps on it read the base.
    :meth:`loss` runs the base alone; the wider network is run in :meth:`untapped_loss`.

    What is drawn depends on ``seed`` and the number of the step alone, so that all processes of
    data-parallel training draw the same and a resumed run repeats it.

    Args:
        network: Config of the base network, or the network.
        width: Multipliers of the widths, 1 or more.
        expansion: Multipliers of the expansion ratios.
        expansion_layers: Globs that say which layers make expansions; see
            :func:`~taskdistill.core.channel_groups.channel_groups`.
        divisor: Channels are rounded to a multiple of it, where the base's are one.
        alpha: Weight of the augmented loss; 1 in the authors' code.
        expand_only: In so many last epochs only expansions are drawn; 75 of 155 in the authors'
            scripts, 0 for never. Without effect if no width can be drawn.
        stop: In so many last epochs nothing is drawn.
        seed: Of what is drawn.
        **classifier: The arguments of :class:`.ImageClassifier`.

    Raises:
        ConfigError: If the network cannot be widened, or an option is out of range.

    Reference:
        Cai, Gan, Lin, Han: Network Augmentation for Tiny Deep Learning, ICLR 2022
        (arXiv 2110.08890).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        ...                     nn.Flatten(), nn.Linear(4, 10))
        >>> model = AugmentedClassifier(net, width=(1, 2), expand_only=0)
        >>> model.state_dict()["0.weight"].shape, model.network[0].weight.shape
        (torch.Size([4, 3, 3, 3]), torch.Size([8, 3, 3, 3]))
        >>> list(model(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), mode="loss"))
        ['loss_cls', 'loss_aug']
    """

    def __init__(
        self,
        network: Mapping[str, Any] | nn.Module,
        width: Sequence[float] = (1.0, 1.8, 2.6),
        expansion: Sequence[float] = (1.0, 1.6, 2.2, 2.8),
        expansion_layers: Sequence[str] | None = None,
        divisor: int = 1,
        alpha: float = 1.0,
        expand_only: int = 75,
        stop: int = 0,
        seed: int = 0,
        drops: Sequence[Mapping[str, Any]] | None = None,
        **classifier: Any,
    ) -> None:
        check_number("alpha", alpha, lambda v: 0 <= v < math.inf, "from 0 on")
        for name, value in (("expand_only", expand_only), ("stop", stop), ("seed", seed)):
            check_number(name, value, lambda v: v >= 0 and v == int(v), "from 0 on, a whole one")
        super().__init__(network, **classifier)
        self.netaug = NetAug(self.network, width, expansion, expansion_layers, divisor)
        self.network = self.netaug.network
        if drops:  # hooks on the layers there are now
            add_drops(self.network, drops)
        self.alpha = alpha
        self.expand_only = expand_only if self._may_widen() else 0
        self.stop = stop
        self.seed = seed
        if self.expand_only and not self._may_expand():
            raise ConfigError(
                f"expand_only={expand_only}, but nothing can be expanded: the network has "
                f"{self.netaug.count('expansion')} expansions, their multipliers are "
                f"{list(self.netaug.expansion)}. Set expand_only=0, and stop to end early."
            )
        self.register_state_dict_post_hook(_slice)
        self.register_load_state_dict_pre_hook(_embed)

    def forward(
        self, inputs: Tensor, data_samples: Tensor | None = None, mode: str = "tensor"
    ) -> Any:
        """Classify with the base; in ``mode="loss"`` both networks' losses."""
        found = super().forward(inputs, data_samples, mode)
        if mode == "loss":
            assert data_samples is not None  # seen to above
            found.update(self.untapped_loss(inputs, data_samples))
            self.take_outputs()  # nobody compares them
        return found

    def untapped_loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss of one wider network, drawn for this step; for when nobody reads taps.

        Its logits are remembered as ``aug_logits``, where one is drawn.

        Args:
            inputs: Normalised images (B, C, H, W).
            labels: (B,) of type int64, or probabilities (B, K).

        Raises:
            ConfigError: If ``expand_only`` leaves no epoch in which widths are drawn.
        """
        width, expansion = self.drawn()
        if not (width or expansion):
            return {}
        sequence = np.random.SeedSequence([self.seed, training_progress().step])
        generator = torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
        with self.netaug.restored():
            self.netaug.sample(generator, width, expansion)
            logits = self.network(inputs)
        self.remember(aug_logits=logits)
        return {"loss_aug": self.alpha * self.classification_loss(logits, labels)}

    def drawn(self) -> tuple[bool, bool]:
        """Whether widths, and whether expansions, are drawn at the present point of training.

        Outside of a runner both are.
        """
        if not self.alpha:
            return False, False
        epochs = MessageHub.get_current_instance().get_info("max_epochs")
        if epochs is None:
            return True, True
        if self.expand_only and self.expand_only >= epochs:
            raise ConfigError(
                f"expand_only={self.expand_only} of {epochs} epochs leaves none in which widths "
                "are drawn. Lower it (half of the epochs in the paper), or give width=[1.0]. "
                "Training by iterations has no epochs: set expand_only=0."
            )
        left = epochs - math.floor(training_progress().epoch)
        if left <= self.stop:
            return False, False
        return left > self.expand_only, True

    # -- beside the deployed weights -----------------------------------------------------------

    def partner_state(self) -> dict[str, Tensor]:
        """The wide network's tensors, the base's among them."""
        wide = {_WIDE + name: value for name, value in self.netaug.wide_state().items()}
        return {**super().partner_state(), **wide}

    def _may_widen(self) -> bool:
        return max(self.netaug.width) > 1 and self.netaug.count("width") > 0

    def _may_expand(self) -> bool:
        return max(self.netaug.expansion) > 1 and self.netaug.count("expansion") > 0


def _slice(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Give the base's part of each entry; the names are the plain network's already."""
    assert isinstance(module, AugmentedClassifier)
    state_dict.update(module.netaug.slice_state(state_dict, prefix))


def _embed(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Undo :func:`_slice`: what lies around the base keeps the values it has."""
    assert isinstance(module, AugmentedClassifier)
    ours = f"{prefix}{NETWORK}."
    for name, wide in module.netaug.wide_state().items():
        state_dict.pop(f"{prefix}{_WIDE}{name}", None)
        if (base := state_dict.get(ours + name)) is not None:
            try:
                state_dict[ours + name] = module.netaug.embedded(name, wide, base)
            except CheckpointError as error:
                error_msgs.append(str(error))
                state_dict[ours + name] = wide
