"""An assigner that gives labels made elsewhere, so that mmdet's own losses train on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmengine.structures import InstanceData

from ....core.errors import TeacherError

__all__ = ["TaughtAssigner", "own_assigner", "taught_assigner"]


class TaughtAssigner(BaseAssigner):
    """Stands before a head's own assigner and answers for the images whose labels it was given.

    mmdet hands an image's ``gt_instances`` on, from its data sample to its assigner, as the same
    object: by it the labels are found again. They live as long as that object does, so that
    nothing is kept beyond a batch; and everything that asks for the batch's targets (the head's
    loss, the regions of a recipe) sees the same ones. For all other images, and in copies of the
    model, the own assigner answers.

    Args:
        own: The assigner that the head was built with; its attributes can be read here.

    Example:
        >>> import torch
        >>> from mmdet.models.task_modules.assigners import MaxIoUAssigner
        >>> box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        >>> truth = InstanceData(bboxes=box, labels=torch.tensor([3]))
        >>> anchors = InstanceData(priors=torch.cat([box, box + 8]))
        >>> assigner = TaughtAssigner(MaxIoUAssigner(0.5, 0.4))
        >>> assigner.assign(anchors, truth).gt_inds.tolist()
        [1, 0]
        >>> swapped = AssignResult(1, torch.tensor([0, 1]), torch.zeros(2), torch.tensor([-1, 3]))
        >>> assigner.load([truth], [swapped])
        >>> assigner.assign(anchors, truth).gt_inds.tolist()
        [0, 1]
    """

    def __init__(self, own: BaseAssigner) -> None:
        self.own: Any = own
        self._taught: WeakKeyDictionary[InstanceData, AssignResult] = WeakKeyDictionary()

    def __getattr__(self, name: str) -> Any:
        if name == "own":  # not there yet
            raise AttributeError(name)
        return getattr(self.own, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.own,)

    def load(self, gt_instances: Sequence[InstanceData], results: Sequence[AssignResult]) -> None:
        """Keep the labels of a batch until its annotations are gone.

        Args:
            gt_instances: Of each image, the object that its data sample holds.
            results: Of each image, over the anchors that mmdet will ask for: those that its head
                trains.
        """
        self._taught.update(zip(gt_instances, results, strict=True))

    def assign(self, pred_instances: InstanceData, *args: Any, **kwargs: Any) -> AssignResult:
        """Return the labels of an image as they were loaded, or else as the own assigner's.

        Args:
            pred_instances: The image's ``priors``.
            *args: As the own assigner takes them, with ``gt_instances`` the first instances.
            **kwargs: The same by name.

        Raises:
            TeacherError: If the labels are for another number of anchors.
        """
        truth = kwargs.get("gt_instances")
        if truth is None:
            truth = next(value for value in args if isinstance(value, InstanceData))
        found = self._taught.get(truth)
        if found is None:
            return self.own.assign(pred_instances, *args, **kwargs)
        if len(found.gt_inds) != len(pred_instances):
            raise TeacherError(
                f"The teacher's labels are for {len(found.gt_inds)} anchors of an image, the "
                f"student trains {len(pred_instances)}. Let the teacher see images of the "
                "student's size (no teacher.scale), with the same strides and anchors."
            )
        return found


def taught_assigner(head: Any) -> TaughtAssigner:
    """Return the assigner of a head that can be taught, putting it in place the first time."""
    if not isinstance(head.assigner, TaughtAssigner):
        head.assigner = TaughtAssigner(head.assigner)
    return head.assigner


def own_assigner(head: Any) -> BaseAssigner:
    """Return the assigner that a head was built with."""
    assigner = head.assigner
    return assigner.own if isinstance(assigner, TaughtAssigner) else assigner
