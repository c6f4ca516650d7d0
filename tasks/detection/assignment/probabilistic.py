"""Probabilistic assignment: which anchors a detector's own predictions say are objects (PAA)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.structures import InstanceData
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ....core.errors import TeacherError

__all__ = ["assignment_cost", "check_finite", "likely_positives", "probabilistic_assignment"]

CANDIDATE_IOU = 0.1
BOX_WEIGHT = 1.3
# A mixture of two needs two points.
LEAST_CANDIDATES = 2


def assignment_cost(logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    r"""How badly predictions fit the object they would be assigned to.

    .. math:: c = \mathrm{Focal}(z, y) + 1.3 \, (1 - \mathrm{GIoU}(b, \hat b))

    with the focal loss summed over the classes, :math:`\gamma = 2`, :math:`\alpha = 0.25` (Kim and
    Lee: Probabilistic Anchor Assignment, ECCV 2020; the same in Nguyen et al., WACV 2022).

    Args:
        logits: Class logits ``(N, K)``, one yes/no question a class.
        boxes: Predicted corners ``(N, 4)`` in pixels.
        labels: Class of each one's object, ``(N,)``.
        truth: Corners of each one's object, ``(N, 4)``.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> sure, lost = torch.tensor([[9.0, -9.0]]), torch.tensor([[-9.0, 9.0]])
        >>> label = torch.tensor([0])
        >>> bool(assignment_cost(sure, box, label, box) < 0.01)
        True
        >>> bool(assignment_cost(lost, box, label, box) > 5)
        True
    """
    wanted = torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits)
    focal = sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0).sum(-1)
    return focal + BOX_WEIGHT * (1 - bbox_overlaps(boxes, truth, mode="giou", is_aligned=True))


def likely_positives(costs: np.ndarray) -> np.ndarray:
    """Which of an object's candidates are positives.

    A mixture of two Gaussians is fitted to the costs, begun at the lowest and the highest. Positive
    are those that belong to the cheap one, up to the likeliest of them (under the whole mixture):
    scheme (c) of the paper's figure 3, which is mmdet's.

    Args:
        costs: ``(N,)`` in rising order, N at least 2.

    Returns:
        Their indices.

    Example:
        >>> likely_positives(np.array([0.1, 0.12, 0.14, 2.0, 2.1, 2.2])).tolist()
        [0, 1]
    """
    # In single precision the variance of costs that nearly agree can come out negative.
    rows = costs.astype(np.float64).reshape(-1, 1)
    mixture = GaussianMixture(
        2,
        covariance_type="diag",
        weights_init=np.array([0.5, 0.5]),
        means_init=np.array([[rows.min()], [rows.max()]]),
        precisions_init=np.ones((2, 1)),
        # Nothing of it remains beside the three above, but k-means would take its time.
        init_params="random_from_data",
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(rows)
    cheap = np.flatnonzero(mixture.predict(rows) == 0)
    if not len(cheap):
        return cheap
    return cheap[: mixture.score_samples(rows)[cheap].argmax() + 1]


def probabilistic_assignment(
    logits: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    level_sizes: Sequence[int],
    gt_instances: Any,
    topk: int = 9,
) -> Tensor:
    """Assign anchors of one image to its objects by what a detector predicts there.

    A candidate of an object overlaps it by an IoU of at least 0.1, and none other more. The
    object's best anchor is one in any case (the later object's, if two share it). Of every level
    the ``topk`` candidates of the lowest :func:`assignment_cost` stay, and :func:`likely_positives`
    parts them. An object with a single candidate gets no positive. All as in mmdet's PAA.

    Args:
        logits: Class logits ``(A, K)``.
        boxes: Predicted corners ``(A, 4)`` in pixels.
        anchors: ``(A, 4)``, levels one after the other.
        level_sizes: Number of anchors of each level.
        gt_instances: The image's ``bboxes`` and ``labels``.
        topk: 9 in the paper.

    Returns:
        For each anchor the 1-based number of its object, 0 for background: ``(A,)``.

    Raises:
        TeacherError: If a cost is not finite.

    Example:
        >>> anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
        >>> truth = InstanceData(bboxes=anchors[:1] + 3.0, labels=torch.tensor([0]))
        >>> said = truth.bboxes + torch.tensor([[4.0], [0.0], [6.0], [6.0]])
        >>> logits = torch.tensor([[-4.0], [4.0], [-4.0], [-4.0]])
        >>> probabilistic_assignment(logits, said, anchors, [4], truth)  # the second fits best
        tensor([0, 1, 0, 0])
    """
    found = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    if len(gt_instances) == 0:
        return found
    overlap = MaxIoUAssigner(CANDIDATE_IOU, CANDIDATE_IOU, ignore_iof_thr=-1)
    owner = overlap.assign(InstanceData(priors=anchors), gt_instances).gt_inds
    candidates = (owner > 0).nonzero().squeeze(1)
    owner = owner[candidates] - 1
    costs = assignment_cost(
        logits[candidates],
        boxes[candidates],
        gt_instances.labels[owner],
        get_box_tensor(gt_instances.bboxes)[owner],
    )
    sizes = torch.tensor(level_sizes, device=anchors.device)
    level = torch.repeat_interleave(sizes)[candidates]
    # One transfer for all the objects.
    owner, level, costs = owner.cpu(), level.cpu(), costs.cpu()
    check_finite(costs)
    for thing in owner.unique().tolist():
        rows = torch.cat(
            [
                own[costs[own].argsort(stable=True)[:topk]]
                for own in (
                    ((owner == thing) & (level == number)).nonzero().squeeze(1)
                    for number in range(len(level_sizes))
                )
            ]
        )
        if len(rows) < LEAST_CANDIDATES:
            continue
        rows = rows[costs[rows].argsort(stable=True)]
        positive = rows[torch.from_numpy(likely_positives(costs[rows].numpy()))]
        found[candidates[positive.to(candidates.device)]] = thing + 1
    return found


def check_finite(costs: Tensor) -> None:
    """Refuse costs that a mixture cannot be fitted to.

    Raises:
        TeacherError: If one is not finite.
    """
    if not costs.isfinite().all():
        raise TeacherError(
            "The teacher's outputs give an assignment cost that is not finite. Check its "
            "checkpoint, and that its images are normalised as in its own training."
        )
