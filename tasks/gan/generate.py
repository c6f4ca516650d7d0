"""Translate the validation images of a config into a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image
from torch import Tensor

from ...core.errors import ConfigError, DataError
from ...core.teacher import load_weights
from ..openmm.config import load_config, plain_config
from ..openmm.teacher import SAFE_GLOBALS
from .translation import TranslationModel

__all__ = ["build_model", "build_translator", "generate_images", "save_image"]


def build_model(cfg: Config) -> Any:
    """Build the model of a plain config, in its scope and with its preprocessor, in eval mode."""
    options = cfg.model.to_dict() if hasattr(cfg.model, "to_dict") else dict(cfg.model)
    if cfg.get("data_preprocessor") is not None:
        # As the runner does: one at the top of a config is the model's.
        options.setdefault("data_preprocessor", cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        return MODELS.build(options).eval()


def build_translator(cfg: Config, checkpoint: str | Path | None = None) -> TranslationModel:
    """Build the translator of a plain config on the CPU, in eval mode.

    Args:
        cfg: The config; a ``distill`` entry is left out.
        checkpoint: Weights to load strictly: one of our checkpoints, or a bare generator of the
            original releases.

    Raises:
        ConfigError: If the config's model is no translator.
        CheckpointError: If the checkpoint cannot be read or does not fit.
    """
    model = build_model(plain_config(cfg))
    if not isinstance(model, TranslationModel):
        raise ConfigError(
            f"Config {cfg.filename!r} has a {type(model).__name__}; expected an image translator "
            "(Pix2Pix, ImageTranslator, CycleGAN)."
        )
    if checkpoint is not None:
        load_weights(model, checkpoint, safe_globals=SAFE_GLOBALS, names=model.checkpoint_names)
    return model


def generate_images(
    config: str,
    checkpoint: str,
    out: Path,
    device: str = "cpu",
    targets: Path | None = None,
    loader: str = "val_dataloader",
) -> int:
    """Translate the validation images of a config, each into a PNG file.

    Files are named after the source images, and complete as soon as they are there; files of the
    same names are replaced by those of this model, others are left alone.

    Args:
        config: Path of the config.
        checkpoint: Path of the weights; see :func:`build_translator`.
        out: Folder of the images; made if absent.
        device: Where the network runs.
        targets: Folder for the target images, under the same names; none by default.
        loader: Which of the config's loaders.

    Returns:
        The number of images.

    Raises:
        ConfigError: If the config has no such loader.
        DataError: If the loader's data set is empty.
    """
    cfg = load_config(config)
    if loader not in cfg:
        raise ConfigError(f"Config {config!r} has no {loader!r} to take images from.")
    model: Any = build_translator(cfg, checkpoint).to(device)
    dataset: Any = DATASETS.build(cfg[loader].dataset)
    if len(dataset) == 0:
        raise DataError(f"The data set of {loader} in {config!r} is empty.")
    for folder in (out, targets):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for index in range(len(dataset)):
        with torch.no_grad():
            result = model.val_step(pseudo_collate([dataset[index]]))[0]
        name = Path(result.metainfo.get("img_path") or f"{index:06d}").stem
        if name in taken:
            name = f"{name}_{index:06d}"
        taken.add(name)
        save_image(result.fake, out / f"{name}.png")
        if targets is not None:
            save_image(result.target, targets / f"{name}.png")
    return len(dataset)


def save_image(pixels: Tensor, path: Path) -> None:
    """Write an 8-bit image ``(C, H, W)`` as PNG, whole or not at all."""
    array = pixels.permute(1, 2, 0).numpy()
    partial = path.with_name(f".{path.name}.partial")
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(partial, format="PNG")
    os.replace(partial, path)
