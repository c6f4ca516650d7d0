"""Image classifiers as mmengine trains them, with the plain network's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, initialize
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError, ShapeError
from ...core.modes import evaluating
from ...core.teacher import load_weights
from ..openmm.checked import CheckedModel
from ..openmm.teacher import SAFE_GLOBALS
from .networks import build_network, is_pretrained
from .regularise import add_drops, check_number

__all__ = ["ImageClassifier"]

NETWORK, PREPROCESSOR = "network", "data_preprocessor"
_MODES = ("tensor", "loss", "predict")


@MODELS.register_module()
class ImageClassifier(CheckedModel):
    r"""A network of logits (B, K), trained by the cross-entropy of its labels.

    .. math:: L = \mathrm{CE}(z / T, y)

    ``state_dict`` has exactly the plain network's names, so that every checkpoint of training loads
    into it where taskdistill is not installed. Whatever else a subclass adds as a submodule (peers,
    branches, exits) is a *partner*: kept beside the state dict by :class:`.hooks.PartnersHook`.

    Args:
        network: Config of the network, for :func:`.networks.build_network`, or the network.
        num_classes: K; checked by :meth:`check_classes`, and against ``num_classes`` in the
            network's config. Whatever the network gives, where left out.
        data_preprocessor: Config of the preprocessor; :class:`.ClassifierPreprocessor` with pixels
            scaled to 0..1 by default. One that mixes images is told ``num_classes``.
        label_smoothing: Share of the label that is spread over all classes, from 0 to 1.
        temperature: T, by which the logits are divided in the training loss, and only there.
            Defensive distillation trains the teacher and, from its softened outputs, the student
            with T > 1 (Papernot et al. 2016, section IV) and deploys at 1. It hides gradients
            rather than removing adversarial examples.
        drops: What to drop in training; see :func:`.regularise.add_drops`.
        init_cfg: How weights begin, in mmengine's form. ``dict(type="Pretrained", checkpoint=...)``
            names a local file of the plain network's weights, read without running code and loaded
            strictly (``strict=False`` takes what fits).

    Raises:
        ConfigError: If the network cannot be built, or an option is out of range.

    Reference:
        Papernot, McDaniel, Wu, Jha, Swami: Distillation as a Defense to Adversarial Perturbations
        against Deep Neural Networks, IEEE S&P 2016 (arXiv 1511.04508); for ``temperature``.

    Example:
        >>> model = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), num_classes=3)
        >>> sorted(model.state_dict())
        ['1.bias', '1.weight']
        >>> images, labels = torch.zeros(2, 3, 2, 2), torch.tensor([0, 2])
        >>> list(model(images, labels, mode="loss"))
        ['loss_cls']
        >>> model(images, labels, mode="predict")[1]["label"]
        2
    """

    def __init__(
        self,
        network: Mapping[str, Any] | nn.Module,
        num_classes: int | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        drops: Sequence[Mapping[str, Any]] | None = None,
        init_cfg: Any = None,
    ) -> None:
        check_number("label_smoothing", label_smoothing, lambda v: 0 <= v <= 1, "from 0 to 1")
        check_number("temperature", temperature, lambda v: 0 < v < math.inf, "above 0")
        if not isinstance(network, nn.Module):
            num_classes = _agreed_classes(num_classes, network)
        super().__init__(_preprocessor(data_preprocessor, num_classes), init_cfg)  # type: ignore[arg-type]
        self.network = build_network(network)
        self.num_classes = num_classes
        self._outputs = _Fleeting()
        self.label_smoothing = label_smoothing
        self.temperature = temperature
        self._comes_trained = not isinstance(network, nn.Module) and is_pretrained(network)
        # A module that comes as it is has the weights that its owner gave it.
        self._keeps_weights = isinstance(network, nn.Module) or self._comes_trained
        if drops:
            add_drops(self.network, drops)
        self.register_state_dict_post_hook(_export_network)
        self.register_load_state_dict_pre_hook(_import_network)

    @property
    def is_trained(self) -> bool:
        """Whether it needs no checkpoint to be a teacher: its network comes with weights."""
        return self._comes_trained or bool(getattr(self.network, "is_trained", False))

    @property
    def checkpoint_names(self) -> Callable[[Mapping[str, Any]], Mapping[str, Any]] | None:
        """What maps the names of a network's release to its own, where it knows one."""
        return getattr(self.network, "checkpoint_names", None)

    @property
    def bare(self) -> nn.Module:
        """The module that recipes tap, whose forward gives logits."""
        return self.network

    def check_classes(self, size: int | Sequence[int] = 32) -> int:
        """Ask the network about a zero image how many classes it has.

        Args:
            size: Height and width in pixels of an image with three channels, or its whole shape
                (C, H, W).

        Returns:
            K.

        Raises:
            ConfigError: If the network cannot take such an image, gives no logits (B, K), or gives
                another number of classes than ``num_classes``.
        """
        shape = (3, size, size) if isinstance(size, int) else tuple(size)
        first = next(self.bare.parameters(), torch.empty(0))
        image = torch.zeros(1, *shape, device=first.device, dtype=first.dtype)
        name = type(self.bare).__name__
        with torch.no_grad(), evaluating(self.bare):
            try:
                logits = self.bare(image)
            except (RuntimeError, ValueError, AssertionError) as error:
                raise ConfigError(
                    f"The network ({name}) cannot take an image of shape {shape}: {error}. Set the "
                    "size and channels of the data, or another network."
                ) from error
        self._check_logits(logits, 1)
        count = logits.shape[1]
        if self.num_classes is not None and count != self.num_classes:
            raise ConfigError(
                f"The network ({name}) gives {count} classes, but num_classes is "
                f"{self.num_classes}. Set num_classes of the network to {self.num_classes}."
            )
        return count

    def init_weights(self) -> None:
        """Initialise what mmengine's modules leave to this call.

        Networks of torchvision, timm and plain ``nn.Module`` classes begin with the weights their
        constructor gave them (pretrained ones among them), whatever methods they have: timm's
        ``init_weights`` would draw them anew.
        """
        if self.is_init:
            return
        if not self._keeps_weights:
            _init_mm_modules(self.network)
        for _, module in self._partners():
            _init_mm_modules(module)
        configs = self.init_cfg or []
        configs = [configs] if isinstance(configs, Mapping) else list(configs)
        others = [config for config in configs if config["type"] != "Pretrained"]
        if others:
            initialize(self, others)
        for config in configs:
            if config["type"] == "Pretrained":
                # mmengine would run the code of a file that needs code to be read.
                load_weights(
                    self.network,
                    config["checkpoint"],
                    strict=config.get("strict", True),
                    safe_globals=SAFE_GLOBALS,
                )
        self.is_init = True

    # -- what mmengine calls -------------------------------------------------------------------

    def forward(
        self,
        inputs: Tensor,
        data_samples: Tensor | None = None,
        mode: str = "tensor",
    ) -> Any:
        """Classify images.

        Args:
            inputs: Normalised images (B, C, H, W).
            data_samples: Labels (B,) of type int64, or one probability a class (B, K).
            mode: ``"tensor"`` gives logits (B, K); ``"loss"`` what :meth:`loss` gives;
                ``"predict"`` what :meth:`predict` gives.

        Raises:
            ShapeError: If the network gives no logits (B, K), or labels are missing or of another
                shape.
        """
        if mode == "tensor":
            return self.bare(inputs)
        if mode == "predict":
            return self.predict(inputs, data_samples)
        if mode != "loss":
            raise ConfigError(f"mode={mode!r} is none of {', '.join(map(repr, _MODES))}.")
        if data_samples is None:
            raise ShapeError("A classifier learns from labels: data_samples is None.")
        losses = self.loss(inputs, data_samples)
        self.take_outputs()  # nobody compares them
        return losses

    def remember(self, **outputs: Tensor) -> None:
        """Keep what :meth:`loss` computed and a recipe may compare (``logits``: the deployed
        network's, with their graph), until :meth:`take_outputs`."""
        self._outputs.update(outputs)

    def take_outputs(self) -> dict[str, Tensor]:
        """Hand out what the last :meth:`loss` remembered, and forget it."""
        found = dict(self._outputs)
        self._outputs.clear()
        return found

    def loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The training losses by name; those with "loss" in it are summed.

        Args:
            inputs: Normalised images (B, C, H, W).
            labels: (B,) of type int64, or probabilities (B, K).
        """
        logits = self.bare(inputs)
        self.remember(logits=logits)
        return {"loss_cls": self.classification_loss(logits, labels)}

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the labels at :attr:`temperature`, averaged over the batch.

        Args:
            logits: (B, K).
            labels: (B,) of type int64, or probabilities (B, K).

        Raises:
            ShapeError: If the shapes do not go together.
        """
        self._check_logits(logits, len(labels))
        if labels.dim() != 1 and labels.shape != logits.shape:
            raise ShapeError(
                f"Labels of shape {tuple(labels.shape)} do not go with logits "
                f"{tuple(logits.shape)}; expected ({logits.shape[0]},) or the logits' shape."
            )
        return F.cross_entropy(
            logits.float() / self.temperature, labels, label_smoothing=self.label_smoothing
        )

    def predict(self, inputs: Tensor, labels: Tensor | None = None) -> list[dict[str, Any]]:
        """Probabilities of the classes, on the CPU.

        Returns:
            One dict a sample: ``scores`` (K,), ``label`` (an int, or None where there is none) and
            ``further``, other ways of predicting: ``{name: (K,)}`` of :meth:`further_scores`.
        """
        logits, others = self.answer(inputs)
        scores = logits.float().softmax(1).cpu()
        further = {name: value.float().cpu() for name, value in others.items()}
        known = [None] * len(scores) if labels is None else labels.tolist()
        return [
            {
                "scores": scores[index],
                "label": label,
                "further": {name: value[index] for name, value in further.items()},
            }
            for index, label in enumerate(known)
        ]

    def answer(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's logits (B, K), and :meth:`further_scores`; where one forward gives both, a
        subclass says so here.
        """
        return self.bare(inputs), self.further_scores(inputs)

    def further_scores(self, inputs: Tensor) -> dict[str, Tensor]:
        """Probabilities (B, K) of other ways of predicting (exits, ensembles); none by default."""
        return {}

    # -- beside the deployed weights -----------------------------------------------------------

    def partner_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the network: partners, and tensors of this class's own.

        The tensors are the living ones, not copies.
        """
        state: dict[str, Any] = {}
        self._save_to_state_dict(state, "", False)
        for name, module in self._partners():
            state.update(module.state_dict(prefix=f"{name}."))
        return state

    def load_partner_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what :meth:`partner_state` kept.

        Raises:
            CheckpointError: If an entry is missing, unexpected or of another shape; nothing is
                changed then.
        """
        own = self.partner_state()
        wrong = [
            f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}"
            for what, names in (
                ("missing", [name for name in own if name not in state]),
                ("unexpected", [name for name in state if name not in own]),
                ("of another shape", [n for n in own if n in state and not _alike(own, state, n)]),
            )
            if names
        ]
        if wrong:
            raise CheckpointError(
                f"The partners kept with the checkpoint are not those of this "
                f"{type(self).__name__}: {'; '.join(wrong)}. Use the config that wrote it, or give "
                "the file as load_from=... without resume to start from the network alone."
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])

    def _partners(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.named_children():
            if name not in (NETWORK, PREPROCESSOR):
                yield name, module

    def _check_logits(self, logits: Any, count: int) -> None:
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(
                f"{type(self.bare).__name__} must give logits (B, K) with B={count}, got {got}. A "
                "network with several outputs needs a wrapper that returns its logits."
            )


class _Fleeting(dict[str, Tensor]):
    """Tensors with a graph, which no copy of the model takes along."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Fleeting:
        return _Fleeting()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Fleeting, ()


def _agreed_classes(num_classes: int | None, network: Mapping[str, Any]) -> int | None:
    theirs = network.get("num_classes")
    if num_classes is not None and theirs is not None and num_classes != theirs:
        raise ConfigError(
            f"num_classes of the classifier is {num_classes}, but that of its network is {theirs}. "
            "Give both the same number."
        )
    return theirs if num_classes is None else num_classes


def _preprocessor(
    config: Mapping[str, Any] | nn.Module | None, num_classes: int | None
) -> dict[str, Any] | nn.Module:
    if isinstance(config, nn.Module):
        return config
    made = dict(config or {})
    made.setdefault("type", "ClassifierPreprocessor")
    if made.get("mixing") and num_classes is not None:
        made.setdefault("num_classes", num_classes)
    return made


def _init_mm_modules(module: nn.Module) -> None:
    """Call ``init_weights`` of mmengine's modules, which their constructors leave to the caller."""
    if isinstance(module, BaseModule):
        if not module.is_init:
            module.init_weights()
        return
    for child in module.children():
        _init_mm_modules(child)


def _alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str) -> bool:
    return isinstance(theirs[name], Tensor) and theirs[name].shape == ours[name].shape


def _export_network(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """Give the network's entries its own names and leave the rest out."""
    ours = f"{prefix}{NETWORK}."
    own = {key: state_dict.pop(key) for key in [k for k in state_dict if k.startswith(prefix)]}
    for key, value in own.items():
        if key.startswith(ours):
            state_dict[prefix + key.removeprefix(ours)] = value
    metadata = getattr(state_dict, "_metadata", None)
    if metadata is None:
        return
    found = {key: metadata.pop(key) for key in [k for k in metadata if k.startswith(prefix)]}
    for key, value in found.items():
        if key.startswith(ours):
            metadata[prefix + key.removeprefix(ours)] = value
    if (root := found.get(ours.removesuffix("."))) is not None:
        metadata[prefix.removesuffix(".")] = root


def _import_network(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Undo :func:`_export_network`; partners keep the values they have."""
    assert isinstance(module, ImageClassifier)
    own = {key: state_dict.pop(key) for key in [k for k in state_dict if k.startswith(prefix)]}
    for key, value in own.items():
        state_dict[f"{prefix}{NETWORK}.{key.removeprefix(prefix)}"] = value
    # The living tensors: copying one onto itself changes nothing.
    kept = module.partner_state() | module.data_preprocessor.state_dict(prefix=f"{PREPROCESSOR}.")
    for key, value in kept.items():
        state_dict[prefix + key] = value
