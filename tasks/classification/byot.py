"""A classifier whose early exits learn from its end; deployed with or without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.online import EarlyExits, byot_losses, ensemble_logits
from ...core.online.byot import Form, check_byot
from .classifier import ImageClassifier
from .regularise import check_number

__all__ = ["SelfTaughtClassifier"]


@MODELS.register_module()
class SelfTaughtClassifier(ImageClassifier):
    r"""Be your own teacher: exits behind the stages of a network, taught by its end.

    .. math:: L = CE(q_C, y) + \sum_{i<C} \Big[ (1 - \alpha) CE(q_i, y)
                  + \alpha T^2 KL(q_C^T \| q_i^T)
                  + \lambda \, \mathrm{mean} (F_i - F_C)^2 \Big]

    See :func:`~taskdistill.core.online.byot_losses` for the normalisation and for what
    ``form="code"`` changes.

    Checkpoints hold ``network`` under its own names, without exits; these are kept beside it.
    ``tools/early_exit.py`` tells what leaving early costs and saves, ``tools/export_classifier.py``
    writes either.

    The log has ``loss_cls`` (the network's end), ``loss_exits``, ``loss_self`` (the divergences)
    and ``loss_hint``, weights included, and ``self_raw`` and ``hint_raw`` without them. Validation
    has ``exit0``, ... and ``ensemble`` (the mean of all probabilities, the network's among them) as
    further predictions.

    Args:
        network: Config of the network, or the network.
        exits: Names of the modules behind which one can leave, shallowest first; in the paper all
            stages of a ResNet but the last.
        features: Name of the module whose output is the deepest feature, in the paper the last
            stage.
        alpha: Share of the end's probabilities against the labels; 0.1 in code for the paper.
        temperature: T of the divergences, 3 in code. (The cross-entropies have none.)
        hint_weight: lambda; 1, with ``form="code"`` 1e-6.
        form: ``"paper"`` or ``"code"``.
        size: Channels, height and width of an image, for looking up shapes.
        **options: As for :class:`.ImageClassifier`.

    Raises:
        ConfigError: If an option is out of range, or exits and features do not run in this order.
        TapError: If there is no such module.
        ShapeError: If an exit gives no maps.

    Reference:
        Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher: Improve the Performance of
        Convolutional Neural Networks via Self Distillation, ICCV 2019 (arXiv 1905.08094).

    Example:
        >>> import torch
        >>> network = dict(type="torchvision", name="resnet18", num_classes=10)
        >>> model = SelfTaughtClassifier(network, size=(3, 64, 64))
        >>> losses = model(torch.zeros(2, 3, 64, 64), torch.tensor([1, 2]), mode="loss")
        >>> list(losses)
        ['loss_cls', 'loss_exits', 'loss_self', 'loss_hint', 'self_raw', 'hint_raw']
        >>> len(model.state_dict()) == len(model.network.state_dict())
        True
    """

    def __init__(
        self,
        network: Mapping[str, Any] | nn.Module,
        exits: Sequence[str] = ("layer1", "layer2", "layer3"),
        features: str = "layer4",
        alpha: float = 0.1,
        temperature: float = 3.0,
        hint_weight: float | None = None,
        form: Form = "paper",
        size: Sequence[int] = (3, 32, 32),
        **options: Any,
    ) -> None:
        check_number("alpha", alpha, lambda a: 0 <= a <= 1, "from 0 to 1")
        check_number("temperature", temperature, lambda t: 0 < t < float("inf"), "above 0")
        if hint_weight is not None:
            check_number("hint_weight", hint_weight, lambda w: 0 <= w < float("inf"), "from 0 on")
        check_byot(alpha, temperature, hint_weight, form)
        super().__init__(network, **options)
        self.size = tuple(size)
        self.exits = EarlyExits(self.network, exits, features, self.size)
        self.alpha = alpha
        self.self_temperature = temperature
        self.hint_weight = hint_weight
        self.form: Form = form

    def loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses of the network's end and of all exits; see the base class."""
        outputs = self.exits(self.network, inputs)
        self.remember(logits=outputs.logits[-1])
        terms = byot_losses(
            outputs,
            labels,
            alpha=self.alpha,
            temperature=self.self_temperature,
            hint_weight=self.hint_weight,
            form=self.form,
            classification=self.classification_loss,
        )
        return {
            "loss_cls": terms["cls"],
            "loss_exits": terms["exits"],
            "loss_self": terms["distill"],
            "loss_hint": terms["hint"],
            "self_raw": terms["distill_raw"].detach(),
            "hint_raw": terms["hint_raw"].detach(),
        }

    def answer(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base class; the network runs once."""
        logits = [each.float() for each in self.exits(self.network, inputs).logits]
        found = {f"exit{i}": each.softmax(1) for i, each in enumerate(logits[:-1])}
        return logits[-1], {**found, "ensemble": ensemble_logits(logits).exp()}

    def further_scores(self, inputs: Tensor) -> dict[str, Tensor]:
        """What each exit says, and the mean of the probabilities of all and of the network."""
        return self.answer(inputs)[1]

    def exit_at(self, images: Tensor, index: int) -> Tensor:
        """Logits of one exit, computing no more than they need.

        Args:
            images: Normalised images (B, C, H, W).
            index: 0 for the shallowest exit, ``len(exits)`` or -1 for the network's end.

        Raises:
            ConfigError: If there is no such exit.
        """
        return self.exits.exit_at(self.network, images, index)

    def early_exit(
        self, images: Tensor, threshold: float | Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Let every sample go at the first exit that is sure enough.

        See :meth:`~taskdistill.core.online.EarlyExits.early_exit`.
        """
        return self.exits.early_exit(self.network, images, threshold)
