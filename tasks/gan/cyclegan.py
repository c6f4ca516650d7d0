"""CycleGAN: two generators that undo each other, each with a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.errors import ConfigError, ShapeError
from ...core.losses import generator_loss, reconstruction
from ...core.losses.adversarial import Objective
from .image_pool import ImagePool
from .translation import (
    Order,
    TranslationModel,
    build_discriminator,
    build_network,
    half_loss,
    in_channels,
    out_channels,
)

__all__ = ["CycleGAN"]


@MODELS.register_module()
class CycleGAN(TranslationModel):
    r"""Unpaired translation between domains A (the inputs) and B (the targets).

    .. math:: L_G = g(D_B(G(a))) + g(D_A(F(b)))
        + \lambda_A \lVert F(G(a)) - a \rVert_1 + \lambda_B \lVert G(F(b)) - b \rVert_1
        + \lambda_{idt} \big(\lambda_B \lVert G(b) - b \rVert_1
        + \lambda_A \lVert F(a) - a \rVert_1\big)

    G is ``generator`` (A to B; the release's G_A), F ``generator_back`` (G_B), the discriminator of
    B ``discriminator`` (the release's D_A), that of A ``discriminator_back`` (D_B). Both generators
    are deployed; ``predict`` and teachers use ``generator``. A bare ``*_net_G_A.pth`` of the
    release loads into ``generator`` and leaves the other one as it is.

    Args:
        generator: Config of G; F is built alike, with the channels exchanged.
        discriminator: Config of the discriminator of B; that of A is built alike. A 70x70
            :class:`.PatchDiscriminator` with instance norm where left out, as in the release.
        cycle: :math:`(\lambda_A, \lambda_B)`; 10 each in the paper.
        identity: :math:`\lambda_{idt}`, 0.5 in the release; 0 switches the term off, which domains
            of different channels need.
        pool: Images in the history of each discriminator; 50 in the paper.
        objective: See :class:`.TranslationModel`.
        order: See :class:`.TranslationModel`.
        data_preprocessor: See :class:`.TranslationModel`.

    Raises:
        ConfigError: If a weight is negative, or the domains' channels forbid the identity term.

    Reference:
        Zhu, Park, Isola, Efros: Unpaired Image-to-Image Translation using Cycle-Consistent
        Adversarial Networks, ICCV 2017, sections 3 and 4; the identity term is in 5.2 (arXiv
        1703.10593).

    Example:
        >>> model = CycleGAN(dict(type="ResnetGenerator", width=4, blocks=1))
        >>> sorted({name.split(".")[0] for name in model.state_dict()})
        ['generator', 'generator_back']
    """

    def __init__(
        self,
        generator: Mapping[str, Any],
        discriminator: Mapping[str, Any] | None = None,
        *,
        cycle: tuple[float, float] = (10.0, 10.0),
        identity: float = 0.5,
        pool: int = 50,
        objective: Objective = "lsgan",
        order: Order = "generator_first",
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
    ) -> None:
        super().__init__(objective, order, data_preprocessor)
        if min(*cycle, identity) < 0:
            raise ConfigError(f"cycle={cycle}, identity={identity}: weights are not negative.")
        self.generator = build_network(generator)
        channels = in_channels(self.generator), out_channels(self.generator)
        self.generator_back = build_network(
            {**generator, "in_channels": channels[1], "out_channels": channels[0]}
        )
        if identity and channels[0] != channels[1]:
            raise ConfigError(
                f"The identity term shows each generator images of its target, but A has "
                f"{channels[0]} channels and B {channels[1]}. Set identity=0."
            )
        settings = {"norm": "instance", **(discriminator or {})}
        self.discriminator = build_discriminator(settings, channels[1])
        self.discriminator_back = build_discriminator(settings, channels[0])
        self.cycle = cycle
        self.identity = identity
        self.pools = {"fake": ImagePool(pool), "fake_back": ImagePool(pool)}

    def losses(self, inputs: Tensor, real: Tensor) -> dict[str, Tensor]:
        """See the base class."""
        if inputs.shape[0] != real.shape[0]:
            raise ShapeError(f"A batch has {len(inputs)} images of A, but {len(real)} of B.")
        there, back = self.generator, self.generator_back
        fake, fake_back = there(inputs), back(real)
        cycled, cycled_back = back(fake), there(fake_back)
        self._played = {
            "": (real, self.pools["fake"].query(fake.detach())),
            "_back": (inputs, self.pools["fake_back"].query(fake_back.detach())),
        }
        self._let_discriminators_learn()
        with self._judged():
            found = {
                "loss_G_gan": generator_loss(self.discriminator(fake), objective=self.objective),
                "loss_G_gan_back": generator_loss(
                    self.discriminator_back(fake_back), objective=self.objective
                ),
            }
        weight, weight_back = self.cycle
        found["loss_G_cycle"] = weight * reconstruction(cycled, inputs)
        found["loss_G_cycle_back"] = weight_back * reconstruction(cycled_back, real)
        if self.identity:
            found["loss_G_identity"] = (
                self.identity * weight_back * reconstruction(there(real), real)
            )
            found["loss_G_identity_back"] = (
                self.identity * weight * reconstruction(back(inputs), inputs)
            )
        return found

    def discriminator_losses(self) -> dict[str, Tensor]:
        """See the base class."""
        return {
            f"loss_D{name}": half_loss(
                self.get_submodule(f"discriminator{name}"), *images, self.objective
            )
            for name, images in self._played.items()
        }
