"""On-the-fly native ensemble: branches that share their lower layers (Lan et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..losses import kl_div
from ..losses._reduction import compute_dtype, full_precision
from ..split import split_at
from ..taps import Taps
from ._probe import Example, asking, check_logits, cross_entropy, example_batch

__all__ = ["Branches", "Gate", "One", "OneOutputs", "branch_weights", "one_losses", "ramp_up"]


class OneOutputs(NamedTuple):
    """What a network with branches answers.

    Args:
        logits: (B, K) of each branch, the deployed network's first.
        ensemble: (B, K), the branches' logits weighted by the gate.
        gate: (B, m + 1), the weights; they sum to 1.
    """

    logits: list[Tensor]
    ensemble: Tensor
    gate: Tensor


class Gate(nn.Module):
    r"""How much each branch counts, sample by sample.

    .. math:: g = \mathrm{softmax}(\mathrm{ReLU}(\mathrm{BN}(\mathrm{FC}(\mathrm{pool}(x)))))

    The ReLU keeps what enters the softmax at 0 or above, as in the authors' code: a branch can be
    given more than its share by as much as may be, but no less than all that are at 0.

    The pooling is global, so any size of input will do; the authors' average pooling over 16 x 16
    is the same on their maps. A batch of a single sample has no variance: in training such a batch
    is normalised by the running statistics, which it leaves as they are.

    Args:
        channels: C of the shared features: maps (B, C, H, W), tokens (B, N, C) or vectors (B, C).
        branches: How many there are, m + 1.

    Example:
        >>> gate = Gate(8, 3)
        >>> one = gate(torch.zeros(1, 8, 1, 1))
        >>> gate(torch.zeros(2, 8, 5, 7)).shape, round(one.sum().item(), 4)
        (torch.Size([2, 3]), 1.0)
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, shared: Tensor) -> Tensor:
        scores = self.linear(_pooled(shared))
        if self.training and len(scores) == 1:
            norm = self.norm
            scores = F.batch_norm(
                scores, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        else:
            scores = self.norm(scores)
        with full_precision(scores):
            return scores.to(compute_dtype(scores)).relu().softmax(1)


class Branches(nn.Module):
    """What a network needs beside itself: the further branches and the gate.

    The network is not a part of it, so that its own state dict stays whole and is kept once; it is
    given to every call.

    Args:
        network: The network that is deployed; its part from `at` on is the first branch.
        others: One or more networks of the same architecture, initialised separately. Of each
            the part from `at` on is kept; what is in front of it is dropped.
        at: Name of the module where the branches begin, such as ``"layer3"``; what is in front of
            it is shared. See :func:`~taskdistill.core.split.split_at` for what can be split.
        example: A batch, or the shape (C, H, W) of an image; shapes are looked up with it.

    Raises:
        ConfigError: If there is no other network, or the networks do not go together.
        ConfigError, TapError: If a network cannot be split there.
        ShapeError: If a network does not run on the example or gives no logits.
    """

    def __init__(
        self, network: nn.Module, others: Sequence[nn.Module], at: str, example: Example
    ) -> None:
        super().__init__()
        if not others:
            raise ConfigError("Branches need at least one network beside the first, got none.")
        _check_separate([network, *others])
        images = example_batch(network, example)
        split_at(network, at)  # a first branch that begins in the middle is told here
        taps = Taps(network, [f"{at}@input"])
        self.at = at
        with asking(network, images), taps.capture() as captured:
            logits = check_logits(network(images), "The first network", len(images))
        # What all branches read must outlive an in-place activation at the head of one.
        self.copies = bool(captured.mutated())
        with asking(network, images):
            shared = self._shared(network, images)[1]
        self.backs = nn.ModuleList()
        for number, other in enumerate(others, start=1):
            front, back = split_at(other, at)
            other.to(images.device)
            with asking(other, images):
                theirs = front(images)
                answer = check_logits(back(theirs), f"Branch {number}", len(images))
            for what, own, found in (("features", shared, theirs), ("logits", logits, answer)):
                if own.shape != found.shape:
                    raise ConfigError(
                        f"Branch {number} has {what} of shape {tuple(found.shape)}, but the first "
                        f"network {tuple(own.shape)}. Branches share the layers in front of "
                        f"{at!r}: give networks of one architecture."
                    )
            if _equal(back, network):
                raise ConfigError(
                    f"Branch {number} begins with the weights of the first network, and would "
                    "agree with it for ever. Initialise each by itself, without pretrained weights."
                )
            self.backs.append(back)
        self.gate = Gate(_channels(shared), len(others) + 1).to(images.device)

    def forward(self, network: nn.Module, images: Tensor) -> OneOutputs:
        """Ask all branches; the shared layers run once, inside of the network's own forward."""
        first, shared = self._shared(network, images)
        gate = self.gate(shared)
        backs = (back(shared.clone() if self.copies else shared) for back in self.backs)
        logits = [first, *backs]
        return OneOutputs(logits, _weighed(logits, gate), gate)

    def _shared(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """The network's logits, and what went into its first branch on the way."""
        spec = f"{self.at}@input"
        taps = Taps(network, [spec])
        if self.copies:
            taps.copied.update(taps.keys)
        with taps.capture() as captured:
            logits = network(images)
        found = captured.tensors(spec)
        if len(found) != 1:
            raise ConfigError(
                f"Module {self.at!r} takes {len(found)} tensors; branches begin where one does."
            )
        return logits, found[0]


class One(nn.Module):
    """A network, its branches and their gate as one module.

    Args:
        networks: Two or more networks of one architecture, initialised separately. The first is
            the one that is deployed, whole, by itself; of the others the part from `at` on is kept.
            The paper's experiments have three branches.
        at: Name of the module where the branches begin; the authors' ResNets for CIFAR share all
            but the last stage, ``"layer3"``.
        example: A batch, or the shape (C, H, W) of an image; shapes are looked up with it. Other
            sizes will do as well, as far as the network takes them.

    Raises:
        ConfigError, TapError, ShapeError: See :class:`Branches`.

    Reference:
        Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018,
        section 3 (arXiv 1806.04606).

    Example:
        >>> def network():
        ...     return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
        >>> model = One([network(), network(), network()], at="1", example=(3, 4, 4))
        >>> answer = model(torch.zeros(2, 3, 4, 4))
        >>> len(answer.logits), answer.ensemble.shape, answer.gate.shape
        (3, torch.Size([2, 5]), torch.Size([2, 3]))
    """

    def __init__(
        self, networks: Sequence[nn.Module], at: str, *, example: Example = (3, 32, 32)
    ) -> None:
        super().__init__()
        if len(networks) < 2:
            raise ConfigError(f"ONE needs two networks or more, got {len(networks)}.")
        self.network = networks[0]
        self.branches = Branches(networks[0], networks[1:], at, example)

    def forward(self, images: Tensor) -> OneOutputs:
        """Logits of each branch, of the ensemble, and the gate."""
        return self.branches(self.network, images)


def one_losses(
    logits: Sequence[Tensor],
    ensemble: Tensor,
    target: Tensor,
    *,
    temperature: float = 3.0,
    classification: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> dict[str, Tensor]:
    r"""What branches and their ensemble learn from labels, and the branches from the ensemble.

    .. math:: L = \sum_{i=0}^{m} CE(z_i, y) + CE(z_e, y)
                  + T^2 \sum_{i=0}^{m} KL(p_e^T \| p_i^T), \qquad p^T = \mathrm{softmax}(z / T)

    The ensemble is the target of its branches, which gives it no gradient: the gate learns from
    the ensemble's own cross-entropy, and so do the branches, a second time, through it. There are
    m + 2 cross-entropies, which all reach the shared layers; mind the learning rate there.

    The authors' code adds 1e-7 to the target's probabilities, which makes its divergence larger by
    about 1e-6 of its value, and multiplies the last sum by :func:`ramp_up`.

    Args:
        logits: (B, K) of each branch.
        ensemble: (B, K), the weighted sum of the branches' logits.
        target: Labels (B,), or one probability a class (B, K).
        temperature: T, 3 in the paper.
        classification: Gives CE of logits and target.

    Returns:
        Four scalars whose sum is L: ``cls`` (CE of the first branch), ``branches`` (the sum of CE
        of the others), ``ensemble`` (CE of the ensemble) and ``distill`` (the last sum of the
        formula). Averaged over the batch, in nats; ``distill`` is 0 where all branches agree.

    Raises:
        ConfigError: If there are fewer than two branches, or the temperature is not above 0.
        ShapeError: If the shapes differ.

    Reference:
        Lan, Zhu, Gong: Knowledge Distillation by On-the-Fly Native Ensemble, NeurIPS 2018,
        section 3, equations 5 to 8 (arXiv 1806.04606).

    Example:
        >>> import torch
        >>> one, two, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0])
        >>> terms = one_losses([one, two], (one + two) / 2, y)
        >>> [(name, round(term.item(), 4)) for name, term in terms.items()]
        [('cls', 0.1269), ('branches', 2.1269), ('ensemble', 0.6931), ('distill', 0.982)]
    """
    if len(logits) < 2:
        raise ConfigError(f"ONE needs the logits of two branches or more, got {len(logits)}.")
    shapes = [tuple(each.shape) for each in (*logits, ensemble)]
    if len(set(shapes)) > 1:
        raise ShapeError(f"Branches and ensemble give logits of one shape, got {shapes}.")
    hard = [classification(each, target) for each in logits]
    soft = [kl_div(each, ensemble, temperature=temperature) for each in logits]
    return {
        "cls": hard[0],
        "branches": torch.stack(hard[1:]).sum(),
        "ensemble": classification(ensemble, target),
        "distill": torch.stack(soft).sum(),
    }


def ramp_up(time: float, length: float = 80.0) -> float:
    r"""Factor of the distillation term that grows from almost 0 to 1.

    .. math:: r(t) = \exp(-5 (1 - t / \ell)^2) \quad (0 \le t \le \ell), \qquad 1 \text{ after}

    So that branches are not pulled to an ensemble that knows nothing yet. It is in the authors'
    code, with a length of 80 epochs, and not in the paper's formula.

    Args:
        time: Where training stands, in epochs (or in whatever unit `length` has).
        length: When the factor is 1; with 0 it always is.

    Raises:
        ConfigError: If the length is negative or not finite.

    Example:
        >>> [round(ramp_up(epoch), 4) for epoch in (0, 40, 80, 300)], ramp_up(0, length=0)
        ([0.0067, 0.2865, 1.0, 1.0], 1.0)
    """
    if not 0 <= length < math.inf:
        raise ConfigError(f"The length of the ramp-up must be a finite number >= 0, got {length}.")
    if length == 0:
        return 1.0
    left = 1.0 - min(max(time, 0.0), length) / length
    return math.exp(-5.0 * left * left)


def branch_weights(network: nn.Module, branches: Branches, number: int) -> dict[str, Tensor]:
    """Weights of one branch as the state dict of a plain network: shared layers and its own.

    Args:
        network: The network that is deployed.
        branches: Its branches.
        number: 0 for the network itself, 1 for the first of the others.

    Raises:
        ConfigError: If there is no such branch.

    Example:
        >>> networks = [nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)) for _ in range(2)]
        >>> branches = Branches(networks[0], networks[1:], "1", example=(2,))
        >>> state = branch_weights(networks[0], branches, 1)
        >>> torch.equal(state["0.bias"], networks[0][0].bias), list(state) == list(
        ...     networks[0].state_dict()
        ... )
        (True, True)
    """
    if not 0 <= number <= len(branches.backs):
        raise ConfigError(
            f"There is no branch {number}; there are 0 (the network itself) to "
            f"{len(branches.backs)}."
        )
    state = dict(network.state_dict())
    if number:
        own = branches.backs[number - 1].state_dict()
        state.update({name: own[name] for name in state if name in own})
    return state


def _weighed(logits: Sequence[Tensor], gate: Tensor) -> Tensor:
    """The sum of the logits, weighted sample by sample, in the gate's precision."""
    with full_precision(gate):
        stacked = torch.stack([each.to(gate.dtype) for each in logits], dim=1)
        return (gate.unsqueeze(2) * stacked).sum(1)


def _channels(shared: Tensor) -> int:
    if shared.ndim not in (2, 3, 4):
        raise ShapeError(
            "The gate reads maps (B, C, H, W), tokens (B, N, C) or vectors (B, C); the branches "
            f"begin at a tensor of shape {tuple(shared.shape)}. Let them begin elsewhere."
        )
    return shared.shape[2 if shared.ndim == 3 else 1]


def _pooled(shared: Tensor) -> Tensor:
    _channels(shared)
    if shared.ndim == 4:
        return shared.mean((2, 3))
    return shared.mean(1) if shared.ndim == 3 else shared


def _check_separate(networks: Sequence[nn.Module]) -> None:
    """Branches of one and the same network would agree for ever."""
    seen: set[int] = set()
    for number, network in enumerate(networks):
        own = {id(parameter) for parameter in network.parameters()}
        if own & seen:
            raise ConfigError(
                f"Network {number} shares parameters with one before it. Build each one anew, so "
                "that the branches begin differently."
            )
        seen |= own


def _equal(back: nn.Module, network: nn.Module) -> bool:
    weights = dict(network.named_parameters())
    learned = [(p, weights[name]) for name, p in back.named_parameters() if p.requires_grad]
    known = all(not p.is_meta and not nn.parameter.is_lazy(p) for pair in learned for p in pair)
    return bool(learned) and known and all(torch.equal(a, b.to(a.device)) for a, b in learned)
