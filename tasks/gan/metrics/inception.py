"""The Inception network of the FID, from a local weights file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core.errors import CheckpointError, ConfigError
from ....core.teacher import file_sha256, read_checkpoint
from .network import FeatureNetwork

__all__ = ["DIMS", "SHA256_PREFIX", "WEIGHTS_NAME", "InceptionNetwork", "load_inception"]

WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
SHA256_PREFIX = "6726825d"
VARIABLE = "TASKDISTILL_INCEPTION"
DIMS = (64, 192, 768, 2048)
"""First max pooling, second max pooling, before the auxiliary classifier, last average pooling."""


class InceptionNetwork(FeatureNetwork):
    """Features for the FID, number for number those of the ``pytorch_fid`` package.

    Made by :func:`load_inception`.

    Args:
        network: pytorch_fid's ``InceptionV3`` with one output block.
        dims: D of that block.
        sha256: Of the weights file.

    Shapes:
        uint8 (B, C, H, W) in, float32 (B, 1, D) out. Grey images become RGB, all are resized to
        299 x 299 (bilinear, without antialiasing, as every published FID of that package).
    """

    figure = "FID"
    kernel_figure = "KID"

    def __init__(self, network: nn.Module, dims: int, sha256: str) -> None:
        super().__init__()
        self.network = network.eval()
        self.dims = dims
        self.sha256 = sha256
        self.identity = f"inception {dims} {sha256}"

    @property
    def published(self) -> bool:
        """Whether the weights are the ones that published figures are made with."""
        return self.sha256.startswith(SHA256_PREFIX)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        maps = self.network(images.float().div(255))[0]
        if maps.shape[2:] != (1, 1):
            maps = F.adaptive_avg_pool2d(maps, 1)
        return maps.flatten(2).mT


def load_inception(weights: str | Path | None = None, dims: int = 2048) -> InceptionNetwork:
    """Load the network of the FID from a local file. Nothing is downloaded.

    Args:
        weights: ``pt_inception-2015-12-05-6726825d.pth``, or a folder that holds it. Without one
            the file (or folder) that the environment variable TASKDISTILL_INCEPTION names, then
            torch hub's folder of checkpoints, where pytorch_fid keeps it.
        dims: Which features: 64, 192, 768, or the usual 2048.

    Warns:
        UserWarning: If the file is not the published one (its SHA-256 begins otherwise).

    Raises:
        ConfigError: If there are no such features.
        CheckpointError: If there is no file, or it holds another network's weights or more than
            weights.

    Reference:
        Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs Trained by a Two Time-Scale Update
        Rule Converge to a Local Nash Equilibrium, NeurIPS 2017 (arXiv 1706.08500).

    Example:
        >>> load_inception("/nowhere.pth", dims=100)
        Traceback (most recent call last):
        taskdistill.core.errors.ConfigError: dims must be one of 64, 192, 768, 2048, got 100.
    """
    if dims not in DIMS:
        raise ConfigError(f"dims must be one of {', '.join(map(str, DIMS))}, got {dims}.")
    path = _find(weights)
    state = read_checkpoint(path)
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise CheckpointError(
            f"{str(path)!r} is no state dict of the FID's Inception network. {_how_to_get()}"
        )
    network = _build(path, state, dims)
    sha256 = file_sha256(path)
    if not sha256.startswith(SHA256_PREFIX):
        warnings.warn(
            f"{str(path)!r} does not hold the published weights: its SHA-256 begins "
            f"{sha256[:8]}, not {SHA256_PREFIX}. Figures made with it cannot be compared with "
            "anybody else's.",
            stacklevel=2,
        )
    return InceptionNetwork(network, dims, sha256)


def _find(weights: str | Path | None) -> Path:
    named = weights is not None
    source = weights if named else os.environ.get(VARIABLE)
    if source:
        path = Path(source).expanduser()
        path = path / WEIGHTS_NAME if path.is_dir() else path
        if path.is_file():
            return path
        by = "was given" if named else f"{VARIABLE} names"
        raise CheckpointError(f"There is no file {str(path)!r}, which {by}. {_how_to_get()}")
    path = _hub_folder() / WEIGHTS_NAME
    if path.is_file():
        return path
    raise CheckpointError(
        f"The FID needs the weights file {WEIGHTS_NAME}, which is not here ({VARIABLE} is not set, "
        f"and {str(path)!r} does not exist). {_how_to_get()}"
    )


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _how_to_get() -> str:
    from pytorch_fid.inception import FID_WEIGHTS_URL

    return (
        f"Download {FID_WEIGHTS_URL} (its SHA-256 begins {SHA256_PREFIX}) and pass it by --weights "
        f"FILE (weights=... in a config), by the environment variable {VARIABLE}, or put it into "
        f"{str(_hub_folder())!r}. Without it, the network 'small' compares images, but its figure "
        "is no FID."
    )


def _build(path: Path, state: Mapping[str, Any], dims: int) -> nn.Module:
    from pytorch_fid import inception

    # The constructor asks for the weights by this function, which downloads and unpickles; and
    # initial values it draws are not to move the random numbers of a training.
    read = mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state)
    with read, torch.random.fork_rng(devices=[]):
        try:
            return inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[dims]])
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[:3]]
            raise CheckpointError(
                f"{str(path)!r} does not fit the FID's Inception network: "
                f"{' '.join(lines)[:300]} ... {_how_to_get()}"
            ) from error
