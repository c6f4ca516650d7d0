"""Weight files of the pytorch-CycleGAN-and-pix2pix and gan-compression releases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ....core.errors import CheckpointError

__all__ = ["release_names"]

_PREFIX = "module."
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_IN_BLOCK = re.compile(r"(.*\bconv_block\.)(\d+)(\..+)")


def release_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a released state dict under the names that a network of this package has.

    Three things differ between files, and no weight with them:

    - a `module.` before every name, left by data-parallel training;
    - statistics of instance norms, which torch wrote before 0.4 and no network here has;
    - the place of what comes after the first activation in a residual block: the CycleGAN release
      has a dropout layer there only if it drops something, gan-compression always.

    All else stays, so that strict loading still names every real difference.

    Args:
        state: The state dict, as read. It is not changed.
        model: The network that it is for.

    Returns:
        A new dict of the same tensors.

    Raises:
        CheckpointError: If ``state`` is not a dict of tensors.

    Example:
        >>> from taskdistill.tasks.gan.models import ResnetGenerator
        >>> model = ResnetGenerator(width=4, blocks=1)
        >>> old = {"module." + n.replace("block.5", "block.6"): v
        ...        for n, v in model.state_dict().items()}
        >>> model.load_state_dict(release_names(old, model))
        <All keys matched successfully>
    """
    _check_state(state)
    names = list(state)
    if names and all(name.startswith(_PREFIX) for name in names):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    lone = {name for name in state if _is_lone_statistic(name, state)}
    shifts = _shifts(set(state) - lone, model.state_dict())
    instance_norms = {n for n, m in model.named_modules() if isinstance(m, nn.InstanceNorm2d)}
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        moved = _moved(name, shifts)
        if name not in lone or moved.rpartition(".")[0] not in instance_norms:
            result[moved] = value
    return result


def _check_state(state: object) -> None:
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"Expected a state dict, names and tensors, got {type(state).__name__}."
        )
    other = [n for n, v in state.items() if not isinstance(n, str) or not isinstance(v, Tensor)]
    if other:
        raise CheckpointError(
            f"Expected a state dict, names and tensors, but {other[:5]} are none. If this is a "
            "whole checkpoint, give its entry with the network's weights."
        )


def _is_lone_statistic(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether it is a running statistic of a norm without weights; a batch norm has them."""
    layer, _, entry = name.rpartition(".")
    return entry in _STATISTICS and f"{layer}.weight" not in state


def _shifts(theirs: Iterable[str], own: Iterable[str]) -> dict[str, tuple[int, int]]:
    """For each block whose second half lies one place off: from which index, and how far."""
    found, wanted = _indices(theirs), _indices(own)
    shifts: dict[str, tuple[int, int]] = {}
    for block, have in found.items():
        want = wanted.get(block, [])
        half = len(have) // 2
        # All of the first half in place: else it is another padding, which is a real difference.
        if len(have) != len(want) or have[:half] != want[:half]:
            continue
        steps = {w - h for h, w in zip(have[half:], want[half:], strict=True)}
        if steps in ({1}, {-1}):
            shifts[block] = (have[half], steps.pop())
    return shifts


def _indices(names: Iterable[str]) -> dict[str, list[int]]:
    """The layers with weights in each residual block."""
    blocks: defaultdict[str, set[int]] = defaultdict(set)
    for name in names:
        if match := _IN_BLOCK.fullmatch(name):
            blocks[match[1]].add(int(match[2]))
    return {block: sorted(indices) for block, indices in blocks.items()}


def _moved(name: str, shifts: Mapping[str, tuple[int, int]]) -> str:
    match = _IN_BLOCK.fullmatch(name)
    if match is None or match[1] not in shifts:
        return name
    start, step = shifts[match[1]]
    index = int(match[2])
    return f"{match[1]}{index + step if index >= start else index}{match[3]}"
