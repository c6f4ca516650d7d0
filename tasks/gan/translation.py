"""Image-to-image translators under mmengine: a generator and a discriminator in turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...core.distiller import check_finite
from ...core.errors import ConfigError, ShapeError, did_you_mean
from ...core.losses import discriminator_loss, generator_loss, reconstruction
from ...core.losses.adversarial import Objective
from ..openmm.checked import CheckedModel
from ..openmm.steps import TurnOptimWrapper, average_gradients, gradient_norm, training_progress
from .data.preprocessor import to_pixels
from .image_pool import ImagePool
from .models import SuperMobileResnetGenerator
from .models.release import release_names

__all__ = ["ADVERSARIES", "ImageTranslator", "Pix2Pix", "TranslationModel"]

Order = Literal["generator_first", "discriminator_first"]
ADVERSARIES = ("discriminator", "discriminator_back")
"""Attributes that hold discriminators: trained, and left out of the deployed state dict."""

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class TranslationModel(CheckedModel):
    """What all translators share: the turns of their players, and what is deployed.

    ``state_dict`` holds the generators alone. The discriminators and image pools are kept by
    :class:`.hooks.AdversaryHook` beside it. Loading accepts the bare files of the original
    releases (``*_net_G.pth``) too.

    Subclasses set :attr:`generator` and the discriminators, and implement :meth:`losses` and
    :meth:`discriminator_losses`.

    Args:
        objective: ``"lsgan"``, ``"vanilla"`` or ``"hinge"``; see
            :func:`~taskdistill.core.losses.discriminator_loss`.
        order: Who steps first. ``"discriminator_first"`` (pix2pix): the generator is judged by the
            discriminator that has just learnt. ``"generator_first"`` (CycleGAN): both gradients
            are those of the weights before the step, as also in the code of GAN compression.
        data_preprocessor: Config of the preprocessor; :class:`.TranslationPreprocessor` by
            default.

    Raises:
        ConfigError: If an option is unknown.
    """

    generator: nn.Module

    def __init__(
        self,
        objective: Objective = "lsgan",
        order: Order = "generator_first",
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
    ) -> None:
        preprocessor = data_preprocessor or dict(type="TranslationPreprocessor")
        super().__init__(data_preprocessor=preprocessor)  # type: ignore[arg-type]
        for option, value, known in (
            ("objective", objective, ("lsgan", "vanilla", "hinge")),
            ("order", order, get_args(Order)),
        ):
            if value not in known:
                raise ConfigError(
                    f"{option}={value!r} of {type(self).__name__} is not one of {list(known)}."
                    f"{did_you_mean(str(value), known)}"
                )
        self.objective: Objective = objective
        self.order: Order = order
        self.pools: dict[str, ImagePool] = {}
        # What the last generator step compared, for the discriminators; without a graph.
        self._played: dict[str, tuple[Tensor, Tensor]] = {}
        # The discriminators' optimizer while their turn comes within the generator's forward.
        self._turn: OptimWrapper | None = None
        self._figures: dict[str, Tensor] = {}
        self.register_state_dict_post_hook(_leave_adversaries_out)
        self.register_load_state_dict_pre_hook(_fill_adversaries_in)

    # -- players -------------------------------------------------------------------------------

    def generators(self) -> dict[str, nn.Module]:
        """The networks that are deployed, by attribute."""
        return {n: m for n, m in self.named_children() if n.startswith("generator")}

    def adversaries(self) -> dict[str, nn.Module]:
        """The discriminators, by attribute."""
        return {name: m for name, m in self.named_children() if name in ADVERSARIES}

    def adversary_parameters(self) -> list[nn.Parameter]:
        """What is trained against the generators, by an optimizer of its own."""
        return [p for module in self.adversaries().values() for p in module.parameters()]

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Read by DDP: the discriminators learn by a backward pass of their own."""
        names = [name for name, _ in (*self.named_parameters(), *self.named_buffers())]
        return [name for name in names if name.split(".")[0] in ADVERSARIES]

    def init_weights(self) -> None:
        """Initialise all players as the release does: normal with deviation 0.02."""
        for module in [*self.generators().values(), *self.adversaries().values()]:
            module.init_weights()  # type: ignore[operator]

    def checkpoint_names(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Map a file's entries to ours: a bare generator's of the releases, or one of our own."""
        ours = tuple(f"{name}." for name in self.generators())
        if any(key.startswith(ours) for key in state):
            return {k: v for k, v in state.items() if not k.startswith(tuple(ADVERSARIES))}
        bare = release_names(state, self.generator)
        others = [name for name in self.generators() if name != GENERATOR]
        kept = {
            f"{name}.{key}": value
            for name in others
            for key, value in self.get_submodule(name).state_dict().items()
        }
        return {f"{GENERATOR}.{key}": value for key, value in bare.items()} | kept

    # -- what mmengine calls -------------------------------------------------------------------

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[Any] | None = None,
        mode: str = "tensor",
    ) -> Any:
        """Translate images ``(B, C, H, W)`` in [-1, 1].

        Args:
            inputs: Images of the source domain.
            data_samples: One a sample; ``real`` is the image of the target domain.
            mode: ``"tensor"`` gives images; ``"predict"`` samples with the 8-bit image ``fake``
                (and ``target`` where there is one); ``"loss"`` the generators' losses.
        """
        if mode == "tensor":
            return self.generator(inputs)
        if mode == "predict":
            return self._predict(inputs, data_samples)
        if mode != "loss":
            raise ConfigError(f"mode={mode!r} is none of 'tensor', 'predict', 'loss'.")
        if not data_samples:
            raise ShapeError("A translator learns from pairs or two sets: data_samples is empty.")
        real = torch.stack([sample.real for sample in data_samples])
        return self.losses(inputs, real)

    def losses(self, inputs: Tensor, real: Tensor) -> dict[str, Tensor]:
        """What the generators minimise; plays through :meth:`_let_discriminators_learn`."""
        raise NotImplementedError(type(self).__name__)

    def discriminator_losses(self) -> dict[str, Tensor]:
        """What the discriminators minimise, on the images of the last :meth:`losses`."""
        raise NotImplementedError(type(self).__name__)

    def _predict(self, inputs: Tensor, data_samples: Sequence[Any] | None) -> list[BaseDataElement]:
        fakes = to_pixels(self.generator(inputs)).cpu()
        found = []
        for index, fake in enumerate(fakes):
            sample: Any = data_samples[index] if data_samples else BaseDataElement()
            result = BaseDataElement(metainfo=dict(sample.metainfo), fake=fake)
            if "target" in sample:
                result.target = sample.target.cpu()
            found.append(result)
        return found

    # -- turns ---------------------------------------------------------------------------------

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """One turn of every player."""
        return self.alternate(self, data, optim_wrapper)

    def alternate(
        self, outer: nn.Module, data: Any, optim_wrapper: TurnOptimWrapper
    ) -> dict[str, Tensor]:
        """One turn of every player.

        Args:
            outer: What gives the generators' losses: this model, or what it is wrapped in (a
                distilled model, data-parallel training).
            data: A batch as the loader gives it.
            optim_wrapper: Of ``generator`` and ``discriminator``.

        Raises:
            NonFiniteLossError: If a loss is not finite; names it.
        """
        if not isinstance(optim_wrapper, TurnOptimWrapper):
            raise ConfigError(
                "A translator has two optimizers. Write optim_wrapper=dict(constructor="
                "'GanOptimWrapperConstructor', generator=dict(optimizer=...), "
                "discriminator=dict(optimizer=...))."
            )
        inner: Any = getattr(outer, "module", outer)
        mine, theirs = optim_wrapper[GENERATOR], optim_wrapper[DISCRIMINATOR]
        first = self.order == "discriminator_first"
        self._figures, self._turn = {}, theirs if first else None
        configuration = self._draw_configuration()
        try:
            with mine.optim_context(outer):
                data = inner.data_preprocessor(data, True)
                losses = outer(**data, mode="loss")
            total, figures = inner.parse_losses(losses)
            mine.update_params(total)
        finally:
            self._turn = None
            if configuration:
                self.generator.active = self.generator.largest
        if not first:
            self._discriminator_turn(theirs)
        return {**figures, **self._figures}

    def _draw_configuration(self) -> bool:
        """Choose the sub-network of this step, where the generator holds many."""
        generator = self.generator
        if not isinstance(generator, SuperMobileResnetGenerator):
            return False
        generator.active = generator.sample(random.Random(random.getrandbits(64)))
        return True

    def _let_discriminators_learn(self) -> None:
        """Where they go first, they learn here: after the images, before these are judged."""
        if self._turn is not None:
            self._discriminator_turn(self._turn)

    def _discriminator_turn(self, optim_wrapper: OptimWrapper) -> None:
        device = next(self.parameters()).device.type
        parameters = self.adversary_parameters()
        step = training_progress().step + 1
        # Not within the generator's autocast, in which a backward pass must not run.
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            with optim_wrapper.optim_context(nn.ModuleDict(self.adversaries())):
                losses = self.discriminator_losses()
            check_finite(losses, step)
            optim_wrapper.backward(optim_wrapper.scale_loss(torch.stack([*losses.values()]).sum()))
            if optim_wrapper.should_update():
                average_gradients(parameters)
                scaler = getattr(optim_wrapper, "loss_scaler", None)
                if scaler is None or not scaler.is_enabled():  # which skips such a step itself
                    check_finite({"gradient of the discriminator": gradient_norm(parameters)}, step)
                optim_wrapper.step()
                optim_wrapper.zero_grad()
        self._figures.update({name: value.detach() for name, value in losses.items()})

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """The discriminators judge, and get no gradient."""
        parameters = self.adversary_parameters()
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    # -- beside the deployed weights -----------------------------------------------------------

    def adversary_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the generators."""
        return {
            "discriminators": {
                name: {key: value.cpu() for key, value in module.state_dict().items()}
                for name, module in self.adversaries().items()
            },
            "pools": {name: pool.state_dict() for name, pool in self.pools.items()},
        }

    def load_adversary_state(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`adversary_state` kept; strict."""
        for name, module in self.adversaries().items():
            module.load_state_dict(state["discriminators"][name], strict=True)
        for name, pool in self.pools.items():
            pool.load_state_dict(state["pools"][name])


def _leave_adversaries_out(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    dropped = tuple(f"{prefix}{name}" for name in (*ADVERSARIES, "data_preprocessor"))
    for entries in (state_dict, getattr(state_dict, "_metadata", {})):
        for key in [k for k in entries if k.startswith(dropped)]:
            entries.pop(key)


def _fill_adversaries_in(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Read other releases' names; discriminators keep the values they have."""
    assert isinstance(module, TranslationModel)
    own = {k.removeprefix(prefix): state_dict.pop(k) for k in [*state_dict] if k.startswith(prefix)}
    own = module.checkpoint_names(own)
    for name, adversary in module.adversaries().items():
        own |= {f"{name}.{key}": value for key, value in adversary.state_dict().items()}
    state_dict.update({prefix + key: value for key, value in own.items()})


@MODELS.register_module()
class ImageTranslator(TranslationModel):
    r"""One generator from a source to a target domain, and a discriminator of the target.

    .. math:: L_G = \lambda_{gan} \, \mathbb{E} \, g(D(G(x))) + \lambda_{recon}
        \lVert G(x) - y \rVert_1, \qquad
        L_D = \tfrac{1}{2} \big(\mathbb{E} \, r(D(y)) + \mathbb{E} \, f(D(G(x)))\big)

    g, r and f are those of the objective (:func:`~taskdistill.core.losses.discriminator_loss`). A
    conditional discriminator judges an image together with its source, D(x, y), which needs pairs.

    With pairs this is pix2pix (see :class:`Pix2Pix`). Without, and with ``reconstruction=0``, it is
    the student of an unpaired teacher: GAN compression trains it with the adversarial term and a
    distance to the teacher's output, which a recipe adds, and with no cycle.

    Args:
        generator: Config of the generator, or the network.
        discriminator: Likewise; its input has the channels of both images where it is
            conditional. Made with :class:`.PatchDiscriminator`'s defaults and the right number of
            channels where left out.
        conditional: Whether the discriminator sees the source image.
        reconstruction: :math:`\lambda_{recon}`, weight of the distance to the ground truth.
        adversarial: :math:`\lambda_{gan}`.
        pool: Images of the discriminator's history (:class:`.ImagePool`).
        objective: See :class:`TranslationModel`.
        order: See :class:`TranslationModel`.
        data_preprocessor: See :class:`TranslationModel`.

    Raises:
        ConfigError: If a weight is negative, or an option unknown.

    Reference:
        Li et al.: GAN Compression, CVPR 2020, section 3.1 (arXiv 2003.08936).

    Example:
        >>> tiny = dict(type="ResnetGenerator", width=4, blocks=1)
        >>> model = ImageTranslator(tiny, dict(type="PatchDiscriminator", width=4))
        >>> model(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
        >>> {name.split(".")[0] for name in model.state_dict()}
        {'generator'}
    """

    def __init__(
        self,
        generator: Mapping[str, Any] | nn.Module,
        discriminator: Mapping[str, Any] | nn.Module | None = None,
        *,
        conditional: bool = False,
        reconstruction: float = 0.0,
        adversarial: float = 1.0,
        pool: int = 0,
        objective: Objective = "lsgan",
        order: Order = "generator_first",
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
    ) -> None:
        super().__init__(objective, order, data_preprocessor)
        for name, value in (("reconstruction", reconstruction), ("adversarial", adversarial)):
            if value < 0:
                raise ConfigError(f"{name}={value} of {type(self).__name__} must not be negative.")
        self.generator = build_network(generator)
        self.conditional = conditional
        seen = out_channels(self.generator)
        if conditional:
            seen += in_channels(self.generator)
        self.discriminator = build_discriminator(discriminator, seen)
        self.reconstruction = reconstruction
        self.adversarial = adversarial
        self.pools["fake"] = ImagePool(pool)

    def losses(self, inputs: Tensor, real: Tensor) -> dict[str, Tensor]:
        """See the base class."""
        fake = self.generator(inputs)
        if (self.reconstruction or self.conditional) and fake.shape != real.shape:
            raise ShapeError(
                f"The generator gives {tuple(fake.shape)}, the target is {tuple(real.shape)}. "
                "Pairs must have one size, and the generator the target's channels."
            )
        # One picture for each sample also goes through the pool with what it was made from.
        shown = torch.cat([inputs, fake.detach()], 1) if self.conditional else fake.detach()
        truth = torch.cat([inputs, real], 1) if self.conditional else real
        self._played = {"": (truth, self.pools["fake"].query(shown))}
        self._let_discriminators_learn()
        with self._judged():
            seen = torch.cat([inputs, fake], 1) if self.conditional else fake
            judged = generator_loss(self.discriminator(seen), objective=self.objective)
        found = {"loss_G_gan": self.adversarial * judged}
        if self.reconstruction:
            found["loss_G_recon"] = self.reconstruction * reconstruction(fake, real)
        return found

    def discriminator_losses(self) -> dict[str, Tensor]:
        """See the base class."""
        return {"loss_D": half_loss(self.discriminator, *self._played[""], self.objective)}


@MODELS.register_module()
class Pix2Pix(ImageTranslator):
    """Paired translation: a conditional discriminator and the distance to the ground truth.

    :class:`ImageTranslator` with the settings of the paper and its release: a conditional
    discriminator, :math:`\\lambda_{recon} = 100`, the vanilla objective, the discriminator's step
    first, no image pool. GAN compression trains its pix2pix models with ``objective="hinge"``.

    Args:
        generator: See :class:`ImageTranslator`; the paper's is ``UnetGenerator``.
        discriminator: See :class:`ImageTranslator`.
        conditional: See :class:`ImageTranslator`.
        reconstruction: Weight of the L1 term; 100 in the paper.
        objective: See :class:`TranslationModel`.
        order: See :class:`TranslationModel`.
        **options: Further arguments of :class:`ImageTranslator`.

    Reference:
        Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks,
        CVPR 2017, section 3 (arXiv 1611.07004).

    Example:
        >>> model = Pix2Pix(dict(type="ResnetGenerator", width=4, blocks=1))
        >>> model.reconstruction, model.discriminator.model[0].in_channels
        (100.0, 6)
    """

    def __init__(
        self,
        generator: Mapping[str, Any] | nn.Module,
        discriminator: Mapping[str, Any] | nn.Module | None = None,
        *,
        conditional: bool = True,
        reconstruction: float = 100.0,
        objective: Objective = "vanilla",
        order: Order = "discriminator_first",
        **options: Any,
    ) -> None:
        super().__init__(
            generator,
            discriminator,
            conditional=conditional,
            reconstruction=reconstruction,
            objective=objective,
            order=order,
            **options,
        )


def build_network(network: Mapping[str, Any] | nn.Module) -> nn.Module:
    """Build a network from its config; one that is built already is returned."""
    return network if isinstance(network, nn.Module) else MODELS.build(dict(network))


def build_discriminator(
    discriminator: Mapping[str, Any] | nn.Module | None, channels: int
) -> nn.Module:
    """Build a discriminator of images with so many channels.

    Raises:
        ConfigError: If the config asks for another number.
    """
    if isinstance(discriminator, nn.Module):
        return discriminator
    settings = {"type": "PatchDiscriminator", **(discriminator or {})}
    if settings.setdefault("in_channels", channels) != channels:
        raise ConfigError(
            f"The discriminator has in_channels={settings['in_channels']}, but is shown images of "
            f"{channels} channels (a conditional one sees source and target). Leave in_channels "
            "out."
        )
    return MODELS.build(settings)


def in_channels(generator: nn.Module) -> int:
    """Channels of the images that a generator takes."""
    return _channels(generator, "in_channels")


def out_channels(generator: nn.Module) -> int:
    """Channels of the images that a generator gives."""
    return _channels(generator, "out_channels")


def _channels(generator: nn.Module, which: str) -> int:
    count = getattr(generator, which, None)
    if not isinstance(count, int):
        raise ConfigError(
            f"{type(generator).__name__} does not say its {which}; give the generator an attribute "
            f"'{which}' (ours have it)."
        )
    return count


def half_loss(discriminator: nn.Module, real: Tensor, fake: Tensor, objective: Objective) -> Tensor:
    """Half the sum over real and generated images, as the releases have it."""
    return 0.5 * discriminator_loss(discriminator(real), discriminator(fake), objective=objective)
