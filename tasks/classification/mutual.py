"""Several classifiers that learn from each other; one of them is deployed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.errors import ConfigError, DataError, did_you_mean
from ...core.online import ensemble_logits, mutual_loss
from .classifier import ImageClassifier
from .networks import build_network
from .regularise import add_drops, check_number

__all__ = ["MutualClassifier"]

Update = Literal["simultaneous", "sequential"]
Order = Literal["same", "different"]


@MODELS.register_module()
class MutualClassifier(ImageClassifier):
    r"""Deep mutual learning: K networks, each with the labels and its peers as teachers.

    .. math:: L_k = CE(z_k, y) + \frac{w \, T^2}{K - 1} \sum_{l \ne k} KL(p_l^T \| p_k^T)

    Network 0 is ``network``: the one that checkpoints hold under its own names and that is
    deployed. Any of them could be; the others are kept beside it in the checkpoint. All are trained
    by the one optimizer of the config, each from an initialisation of its own: networks that began
    equal would have nothing to tell each other.

    Where the config clips gradients by their norm, that is the norm over all networks that step
    together.

    The log has ``loss_cls`` and ``loss_mutual`` of network 0, and of each peer the sum,
    ``loss_peer1``, ... Validation has ``peer1``, ... and ``ensemble`` (the mean of all networks'
    probabilities) as further predictions.

    Args:
        network: Config of network 0.
        peers: How many further networks of the same config (1), or the config of each; they may be
            of any architecture with the same classes.
        temperature: T of the mutual term, 1 in the paper. (The cross-entropy has none.)
        weight: w, 1 in the paper.
        update: ``"simultaneous"``: all step together, on predictions from before the step.
            ``"sequential"``: one after the other, each on the new predictions of those that have
            stepped, as the paper's algorithm 1 has it; costs a further forward for each network but
            the last. Then gradients cannot be accumulated over batches, and there is no
            data-parallel training and no teacher beside the peers.
        order: ``"same"``: all see the same images. ``"different"``: each goes through the data in
            an order and an augmentation of its own, and learns on its images from the labels and
            from what the others say about them; needs training data of
            ``dict(type="PeerOrders", orders=K, ...)`` and takes no teacher beside the peers.
        **options: As for :class:`.ImageClassifier`; ``drops`` holds for network 0 and for peers of
            its config. Its ``temperature`` is that of the mutual term here.

    Raises:
        ConfigError: If an option is unknown or out of range, ``peers`` is no number above 0 and no
            list of configs, or two networks begin with the same weights.

    Reference:
        Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018 (arXiv 1706.00384), section 3.

    Example:
        >>> small = dict(type="torch.nn:Linear", in_features=5, out_features=3)
        >>> model = MutualClassifier(small, peers=2)
        >>> losses = model(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]), mode="loss")
        >>> list(losses)
        ['loss_cls', 'loss_mutual', 'loss_peer1', 'loss_peer2']
        >>> sorted(model.state_dict())
        ['bias', 'weight']
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        peers: int | Sequence[Mapping[str, Any]] = 1,
        temperature: float = 1.0,
        weight: float = 1.0,
        update: Update = "simultaneous",
        order: Order = "same",
        **options: Any,
    ) -> None:
        if isinstance(network, nn.Module):
            raise ConfigError(
                "MutualClassifier needs the config of its network, from which peers are made; it "
                f"got a {type(network).__name__}. Write network=dict(type=...)."
            )
        configs = _peer_configs(network, peers)
        check_number("temperature", temperature, lambda t: 0 < t < float("inf"), "above 0")
        check_number("weight", weight, lambda w: 0 <= w < float("inf"), "from 0 on")
        for name, value, known in (("update", update, Update), ("order", order, Order)):
            if value not in get_args(known):
                raise ConfigError(
                    f"{name}={value!r} of MutualClassifier is none of "
                    f"{', '.join(map(repr, get_args(known)))}."
                    f"{did_you_mean(str(value), get_args(known))}"
                )
        super().__init__(network, **options)
        for config in configs:
            classes = config.get("num_classes")
            if None not in (classes, self.num_classes) and classes != self.num_classes:
                raise ConfigError(
                    f"A peer has num_classes={classes}, network 0 has {self.num_classes}. Peers "
                    "compare their predictions: give all the same classes."
                )
        self.peers = nn.ModuleList(build_network(config) for config in configs)
        if drops := options.get("drops"):
            for config, peer in zip(configs, self.peers, strict=True):
                if config == network:
                    add_drops(peer, drops)
        self.mutual_temperature = temperature
        self.weight = weight
        self.update: Update = update
        self.order: Order = order
        _check_initialisation(self.networks)
        if order == "different":
            self.data_preprocessor = _ViewPreprocessor(self.data_preprocessor, len(self.networks))

    @property
    def networks(self) -> list[nn.Module]:
        """All networks, the deployed one first."""
        return [self.network, *self.peers]

    def loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses of all networks.

        Args:
            inputs: Images (B, C, H, W); with ``order="different"`` (B, K, C, H, W).
            labels: (B,) or probabilities (B, classes); with ``order="different"`` (B, K) or
                (B, K, classes).

        Raises:
            ConfigError: If the networks are to step in turn, which takes more than a loss.
            DataError: If ``order`` and data do not go together.
        """
        if self.update == "sequential":
            raise ConfigError(
                "update='sequential' lets the networks step in turn, which neither data-parallel "
                "training nor a model with a teacher beside it can do. Use update='simultaneous', "
                "or train in one process without a distill entry."
            )
        self._check_views(inputs, labels)
        losses: dict[str, Tensor] = {}
        if self.order == "same":
            logits = [network(inputs) for network in self.networks]
            self.remember(logits=logits[0])
            for k, own in enumerate(logits):
                others = [each for i, each in enumerate(logits) if i != k]
                losses.update(self._terms(k, own, others, labels))
            return losses
        # What the others say is asked first: it must not come between a forward and its backward.
        told = [self._others(k, inputs[:, k]) for k in range(len(self.networks))]
        for k, (network, others) in enumerate(zip(self.networks, told, strict=True)):
            own = network(inputs[:, k])
            if k == 0:
                self.remember(logits=own)
            losses.update(self._terms(k, own, others, labels[:, k]))
        return losses

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One step of every network: together, or in turn.

        Raises:
            ConfigError: If the networks step in turn and gradients are to be accumulated.
        """
        if self.update == "simultaneous":
            return super().train_step(data, optim_wrapper)
        if getattr(optim_wrapper, "_accumulative_counts", 1) > 1:
            raise ConfigError(
                "update='sequential' steps once for each network and batch, but "
                f"optim_wrapper.accumulative_counts is {optim_wrapper._accumulative_counts}. Set "
                "it to 1, or use update='simultaneous'."
            )
        with optim_wrapper.optim_context(self):
            batch = self.data_preprocessor(data, True)
        inputs, labels = batch["inputs"], batch["data_samples"]
        self._check_views(inputs, labels)
        # In turn, with its own gradients alone: the optimizer leaves out what has none.
        optim_wrapper.zero_grad()
        figures: dict[str, Tensor] = {}
        logits: list[Tensor] = []
        if self.order == "same":
            with optim_wrapper.optim_context(self):
                logits = [network(inputs) for network in self.networks]
        for k, network in enumerate(self.networks):
            with optim_wrapper.optim_context(self):
                if self.order == "same":
                    others = [each.detach() for i, each in enumerate(logits) if i != k]
                    losses = self._terms(k, logits[k], others, labels)
                else:
                    images = inputs[:, k]
                    others = self._others(k, images)
                    losses = self._terms(k, network(images), others, labels[:, k])
            total, found = self.parse_losses(losses)
            optim_wrapper.update_params(total)
            found = {name: value.detach() for name, value in found.items()}
            if "loss" in figures:
                found["loss"] = figures["loss"] + found["loss"]
            figures.update(found)
            if self.order == "same" and k + 1 < len(logits):
                with optim_wrapper.optim_context(self):
                    logits[k] = self._told(network, inputs)
        return figures

    def answer(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base class; every network runs once."""
        logits = [network(inputs).float() for network in self.networks]
        found = {f"peer{k}": each.softmax(1) for k, each in enumerate(logits) if k}
        return logits[0], {**found, "ensemble": ensemble_logits(logits).exp()}

    def further_scores(self, inputs: Tensor) -> dict[str, Tensor]:
        """What each peer says, and the mean of the probabilities of all networks."""
        return self.answer(inputs)[1]

    def _terms(
        self, k: int, logits: Tensor, others: Sequence[Tensor], labels: Tensor
    ) -> dict[str, Tensor]:
        """The losses of network k, by the names they have in the log."""
        hard = self.classification_loss(logits, labels)
        soft = self.weight * mutual_loss(logits, others, temperature=self.mutual_temperature)
        if k == 0:
            return {"loss_cls": hard, "loss_mutual": soft}
        return {f"loss_peer{k}": hard + soft}

    def _others(self, k: int, images: Tensor) -> list[Tensor]:
        """What all networks but k say about images."""
        return [self._told(each, images) for i, each in enumerate(self.networks) if i != k]

    def _told(self, network: nn.Module, images: Tensor) -> Tensor:
        """What a network says as a teacher: as in training, but leaving its statistics alone."""
        with torch.no_grad(), _buffers_kept(network):
            return network(images)

    def _check_views(self, inputs: Tensor, labels: Tensor) -> None:
        if self.order == "different":
            _check_views(inputs, labels, len(self.networks))
        elif inputs.dim() == 5:
            raise DataError(
                f"order='same' needs images (B, C, H, W), got {tuple(inputs.shape)}. Set "
                "order='different' for data of PeerOrders, or take PeerOrders away."
            )


def _check_views(inputs: Any, labels: Any, count: int) -> None:
    """See that every sample has an image and a label for each network."""
    shapes = [tuple(getattr(each, "shape", ())) for each in (inputs, labels)]
    if len(shapes[0]) < 3 or len(shapes[1]) < 2 or not shapes[0][1] == shapes[1][1] == count:
        raise DataError(
            f"order='different' of {count} networks needs {count} images and labels a sample, got "
            f"inputs {shapes[0]} and labels {shapes[1]}. Write "
            f"train_dataloader.dataset=dict(type='PeerOrders', orders={count}, dataset=...)."
        )


class _ViewPreprocessor(BaseDataPreprocessor):
    """Preprocess each network's batch by itself: mixed images come from one order."""

    def __init__(self, inner: nn.Module, count: int) -> None:
        super().__init__()
        self.inner = inner
        self.count = count

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        if not training:
            return self.inner(data, False)
        inputs, labels = data["inputs"], data["data_samples"]
        _check_views(inputs, labels, self.count)
        views = [
            self.inner({**data, "inputs": inputs[:, k], "data_samples": labels[:, k]}, True)
            for k in range(self.count)
        ]
        stacked = {
            k: torch.stack([view[k] for view in views], 1) for k in ("inputs", "data_samples")
        }
        return {**views[0], **stacked}


def _peer_configs(
    network: Mapping[str, Any], peers: int | Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    if isinstance(peers, int) and not isinstance(peers, bool) and peers > 0:
        return [network] * peers
    if isinstance(peers, Sequence) and peers and all(isinstance(p, Mapping) for p in peers):
        return list(peers)
    raise ConfigError(
        f"peers={peers!r} of MutualClassifier; expected how many further networks of the same "
        "config, 1 or more, or a list of configs: [dict(type='torchvision', name=...), ...]."
    )


def _check_initialisation(networks: Sequence[nn.Module]) -> None:
    """Refuse networks that began equal: then nothing is learned from each other."""
    for second in range(1, len(networks)):
        for first in range(second):
            if _equal(networks[first], networks[second]):
                raise ConfigError(
                    f"Networks {first} and {second} begin with the same weights, so they would "
                    "stay equal and learn nothing from each other. Give one of them other "
                    "pretrained weights, none, or another architecture."
                )


def _equal(one: nn.Module, two: nn.Module) -> bool:
    ours, theirs = one.state_dict(), two.state_dict()
    if ours.keys() != theirs.keys():
        return False
    # Where weights are told or made later (meta device, lazy layers), nothing can be compared.
    tensors = [(value, theirs[name]) for name, value in ours.items()]
    learned = [pair for pair in tensors if pair[0].is_floating_point()]
    if not learned or any(not _has_values(t) for pair in learned for t in pair):
        return False
    return all(torch.equal(a, b) for a, b in learned)


def _has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not nn.parameter.is_lazy(tensor)


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Run a network in training mode without a trace in its running statistics."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
