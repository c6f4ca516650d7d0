"""Several trained networks that answer as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.online.born_again import Average, check_average, ensemble_logits
from ...core.teacher import load_weights
from ..openmm.teacher import SAFE_GLOBALS
from .networks import build_network, is_pretrained

__all__ = ["Ensemble"]


@MODELS.register_module()
class Ensemble(nn.Module):
    """The mean of several networks' predictions, as one network that gives logits.

    As the network of an :class:`.ImageClassifier` it can be evaluated, and it can teach::

        teacher=dict(config=dict(model=dict(
            type="ImageClassifier",
            network=dict(type="Ensemble", networks=[...], checkpoints=[...]))))

    Born-again networks are such an ensemble of generations (Furlanello et al. 2018).

    Args:
        networks: Config of each network (see :func:`.networks.build_network`), or one config for
            all checkpoints.
        checkpoints: File of each network's weights, as training writes them; loaded strictly.
            ``None`` for a network (or for all) that stays as it is built: with its library's
            pretrained weights, or to be loaded later from a checkpoint of the whole ensemble.
        average: ``"probabilities"``: the logits are the log of the mean probability.
            ``"logits"``: the mean of the logits. See :func:`.ensemble_logits`.

    Attributes:
        is_trained: Whether every network has trained weights, from a file or its library's.

    Raises:
        ConfigError: If there is no network, or not one checkpoint a network.
        CheckpointError: If a file cannot be read or belongs to another architecture.

    Example:
        >>> import torch
        >>> small = dict(type="torch.nn:Linear", in_features=4, out_features=3)
        >>> model = Ensemble([small, small])
        >>> mean = sum(network(torch.ones(1, 4)).softmax(1) for network in model.networks) / 2
        >>> torch.allclose(model(torch.ones(1, 4)).softmax(1), mean)
        True
    """

    def __init__(
        self,
        networks: Sequence[Mapping[str, Any] | nn.Module] | Mapping[str, Any],
        checkpoints: Sequence[str | None] | None = None,
        average: Average = "probabilities",
    ) -> None:
        super().__init__()
        check_average(average)
        if isinstance(networks, Mapping):
            networks = [networks] * len(checkpoints or ())
        if isinstance(checkpoints, str):
            raise ConfigError(f"checkpoints of Ensemble is a list of files, got {checkpoints!r}.")
        if not networks:
            raise ConfigError(
                "Ensemble needs networks=[dict(type=...), ...], or one config and "
                "checkpoints=[...] of several trainings."
            )
        if checkpoints is not None and len(checkpoints) != len(networks):
            raise ConfigError(
                f"Ensemble has {len(networks)} networks, but {len(checkpoints)} checkpoints. Give "
                "one file a network, in the same order."
            )
        self.networks = nn.ModuleList(build_network(config) for config in networks)
        self.average: Average = average
        files = checkpoints or [None] * len(networks)
        self.is_trained = all(
            path is not None or is_pretrained(config)
            for config, path in zip(networks, files, strict=True)
        )
        for network, path in zip(self.networks, files, strict=True):
            if path is not None:
                load_weights(
                    network,
                    path,
                    safe_globals=SAFE_GLOBALS,
                    names=getattr(network, "checkpoint_names", None),
                )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) of the ensemble."""
        return ensemble_logits([each(inputs) for each in self.networks], average=self.average)

    def extra_repr(self) -> str:
        return f"average={self.average!r}"
