"""Two optimizers: the generators' and the discriminators'."""

from __future__ import annotations

from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ...core.errors import ConfigError, did_you_mean
from ..openmm.steps import TurnOptimWrapper
from .translation import DISCRIMINATOR, GENERATOR, TranslationModel

__all__ = ["GanOptimWrapperConstructor"]

_SHARED = ("type", "loss_scale", "dtype", "accumulative_counts", "clip_grad")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GanOptimWrapperConstructor:
    """Build one optimizer wrapper for the generators and one for the discriminators.

    In a config::

        optim_wrapper = dict(
            constructor="GanOptimWrapperConstructor",
            generator=dict(optimizer=dict(type="Adam", lr=2e-4, betas=(0.5, 0.999))),
            discriminator=dict(optimizer=dict(type="Adam", lr=2e-4, betas=(0.5, 0.999))),
        )

    Args:
        optim_wrapper_cfg: As mmengine passes it. ``type``, ``accumulative_counts``, ``clip_grad``,
            ``loss_scale`` and ``dtype`` beside the two players hold for both, where a player has
            none of its own.
        paramwise_cfg: As mmengine passes it; holds for both.

    Raises:
        ConfigError: If a player is missing, or an entry unknown.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        players = (GENERATOR, DISCRIMINATOR)
        known = [*players, *_SHARED]
        for key in optim_wrapper_cfg:
            if key not in known:
                raise ConfigError(
                    f"optim_wrapper has no {key!r}.{did_you_mean(key, known)} It holds "
                    f"generator=dict(optimizer=...), discriminator=dict(optimizer=...)."
                )
        for player in players:
            if "optimizer" not in (optim_wrapper_cfg.get(player) or {}):
                raise ConfigError(f"optim_wrapper.{player} has no 'optimizer'.")
        self.shared = {key: optim_wrapper_cfg[key] for key in _SHARED if key in optim_wrapper_cfg}
        self.players = {player: dict(optim_wrapper_cfg[player]) for player in players}
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> TurnOptimWrapper:
        """Build both for a (possibly data-parallel) translator."""
        inner: Any = getattr(model, "module", model)
        if not isinstance(inner, TranslationModel):
            raise ConfigError(
                "GanOptimWrapperConstructor is for image translators (Pix2Pix, CycleGAN, ...), "
                f"got {type(inner).__name__}."
            )
        networks = {GENERATOR: inner.generators(), DISCRIMINATOR: inner.adversaries()}
        wrappers = {}
        for player, settings in self.players.items():
            build = OPTIM_WRAPPER_CONSTRUCTORS.build(
                dict(
                    type="DefaultOptimWrapperConstructor",
                    optim_wrapper_cfg={"type": "OptimWrapper", **self.shared, **settings},
                    paramwise_cfg=self.paramwise_cfg,
                )
            )
            wrappers[player] = build(nn.ModuleDict(networks[player]))
        return TurnOptimWrapper(GENERATOR, wrappers)
