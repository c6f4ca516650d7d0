"""A classifier with branches that learn from their own ensemble; one of them is deployed."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.online import Branches, branch_weights, one_losses, ramp_up
from ..openmm.steps import training_progress
from .classifier import ImageClassifier
from .networks import build_network
from .regularise import add_drops, check_number

__all__ = ["OneClassifier"]


@MODELS.register_module()
class OneClassifier(ImageClassifier):
    r"""On-the-fly native ensemble: m + 1 branches on shared layers, and a gate.

    .. math:: L = \sum_i CE(z_i, y) + CE(z_e, y)
                  + w \, r(t) \, T^2 \sum_i KL(p_e^T \| p_i^T), \qquad z_e = \sum_i g_i z_i

    See :func:`~taskdistill.core.online.one_losses` and :func:`~taskdistill.core.online.ramp_up`.

    Branch 0 is ``network``: the one that checkpoints hold under its own names and that is deployed.
    The other branches and the gate are kept beside it in the checkpoint. A step runs the shared
    layers once, and every module of the network once, so that recipes can tap it.

    The log has ``loss_cls`` of branch 0, ``loss_branches`` (the other branches' cross-entropies),
    ``loss_ensemble``, ``loss_one`` (the divergences, weighted) and ``one_raw``. Validation has
    ``branch1``, ... and ``ensemble`` (the gated one) as further predictions.

    Args:
        network: Config of the network. The other branches are made from it too, each initialised by
            itself; pretrained weights would make them equal, and are refused.
        at: Name of the module where the branches begin, such as ``"layer3"`` (the last stage of
            a ResNet for CIFAR, as in the paper).
        branches: How many there are beside the network's own, m; 2 in the paper.
        temperature: T of the divergences, 3 in the paper. (The cross-entropies have none.)
        ramp_up: Epochs over which the divergences are faded in; 80 of 300 in the authors' code. 0
            for none, as in the paper's formula.
        weight: w, 1 in the paper.
        size: Channels, height and width of an image, for looking up shapes.
        **options: As for :class:`.ImageClassifier`; ``drops`` holds for every branch.

    Raises:
        ConfigError: If an option is out of range, the network comes built already or pretrained, or
            it cannot be split at `at`.
        TapError: If there is no module `at`.

    Reference:
        Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018
        (arXiv 1806.04606).

    Example:
        >>> import torch
        >>> network = dict(type="torchvision", name="resnet18", num_classes=10)
        >>> model = OneClassifier(network, at="layer4", size=(3, 32, 32))
        >>> losses = model(torch.zeros(2, 3, 32, 32), torch.tensor([1, 2]), mode="loss")
        >>> list(losses)
        ['loss_cls', 'loss_branches', 'loss_ensemble', 'loss_one', 'one_raw']
        >>> len(model.state_dict()) == len(model.network.state_dict())
        True
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        at: str,
        branches: int = 2,
        temperature: float = 3.0,
        ramp_up: float = 80.0,
        weight: float = 1.0,
        size: Sequence[int] = (3, 32, 32),
        **options: Any,
    ) -> None:
        if isinstance(network, nn.Module):
            raise ConfigError(
                "OneClassifier needs the config of its network, from which branches are made; it "
                f"got a {type(network).__name__}. Write network=dict(type=...)."
            )
        if not isinstance(branches, int) or isinstance(branches, bool) or branches < 1:
            raise ConfigError(
                f"branches={branches!r} of OneClassifier; expected how many there are beside the "
                "network's own, 1 or more."
            )
        check_number("temperature", temperature, lambda t: 0 < t < math.inf, "above 0")
        check_number("ramp_up", ramp_up, lambda r: 0 <= r < math.inf, "of epochs, 0 or more")
        check_number("weight", weight, lambda w: 0 <= w < math.inf, "from 0 on")
        super().__init__(network, **options)
        others = [build_network(network) for _ in range(branches)]
        for other in others:
            add_drops(other, options.get("drops") or ())
        self.branches = Branches(self.network, others, at, tuple(size))
        self.one_temperature = temperature
        self.ramp_up = ramp_up
        self.weight = weight

    def loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses of all branches and of their ensemble; see the base class."""
        outputs = self.branches(self.network, inputs)
        self.remember(logits=outputs.logits[0])
        terms = one_losses(
            outputs.logits,
            outputs.ensemble,
            labels,
            temperature=self.one_temperature,
            classification=self.classification_loss,
        )
        raw = terms["distill"]
        factor = self.weight * ramp_up(training_progress().epoch, self.ramp_up)
        return {
            "loss_cls": terms["cls"],
            "loss_branches": terms["branches"],
            "loss_ensemble": terms["ensemble"],
            "loss_one": factor * raw,
            "one_raw": raw.detach(),
        }

    def answer(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base class; the shared layers run once."""
        outputs = self.branches(self.network, inputs)
        found = {f"branch{i}": z.float().softmax(1) for i, z in enumerate(outputs.logits) if i}
        return outputs.logits[0], {**found, "ensemble": outputs.ensemble.softmax(1)}

    def further_scores(self, inputs: Tensor) -> dict[str, Tensor]:
        """What each further branch says, and the gated ensemble of all."""
        return self.answer(inputs)[1]

    def peer(self, number: int) -> nn.Module:
        """One branch as a plain network of its own, with the shared layers.

        Args:
            number: 0 for the network itself, 1 for the first of the others.

        Returns:
            A copy.

        Raises:
            ConfigError: If there is no such branch.
        """
        state = branch_weights(self.network, self.branches, number)
        plain = copy.deepcopy(self.network)
        plain.load_state_dict(state, strict=True)
        return plain
