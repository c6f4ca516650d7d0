"""Networks by config: torchvision's, timm's, registered classes, or anything importable."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torchvision
from mmengine.registry import MODELS
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from ...core.errors import CheckpointError, ConfigError, did_you_mean

__all__ = ["build_network", "is_pretrained"]

# Their auxiliary classifiers return something else than logits in training.
_AUXILIARY = ("googlenet", "inception_v3")


def build_network(config: Mapping[str, Any] | nn.Module) -> nn.Module:
    """Build a network from its config; one that is built already is returned.

    Args:
        config: ``type`` says where it comes from, the rest are its arguments:

            - ``dict(type="torchvision", name="resnet18", num_classes=10, weights=None, ...)``: any
              classifier of torchvision. ``weights`` is a name of its pretrained weights
              (``"DEFAULT"``, ``"IMAGENET1K_V1"``), which torchvision downloads; with another
              ``num_classes`` than theirs, the last layer starts anew.
            - ``dict(type="timm", name="mobilenetv3_small_050", num_classes=10, pretrained=False,
              ...)``: any model of timm.
            - ``dict(type="CifarResNet", depth=20, num_classes=10)``: a class registered in
              mmengine's ``MODELS``.
            - ``dict(type="package.module:Name", ...)``: a class or function that returns a network.

    Raises:
        ConfigError: If there is no such network, its arguments are wrong, or its library is not
            installed.
        CheckpointError: If pretrained weights cannot be fetched or read.

    Example:
        >>> network = build_network(dict(type="torchvision", name="resnet18", num_classes=10))
        >>> network.fc.out_features
        10
        >>> build_network(dict(type="torch.nn:Linear", in_features=2, out_features=3))
        Linear(in_features=2, out_features=3, bias=True)
    """
    if isinstance(config, nn.Module):
        return config
    if not isinstance(config, Mapping) or "type" not in config:
        raise ConfigError(
            f"A network is a module or a dict with 'type', got {config!r}. For example "
            "dict(type='torchvision', name='resnet18', num_classes=10)."
        )
    options = dict(config)
    kind = options.pop("type")
    if kind in _LIBRARIES:
        if not isinstance(options.get("name"), str):
            raise ConfigError(f"A network of {kind} needs its name, e.g. name='resnet18'.")
        name, make = options.pop("name"), _LIBRARIES[kind]
        make = make(name)
    else:
        name, make = str(kind), _find(kind)
    try:
        network = make(**options)
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:
        # Whatever a library's download raises; what the arguments raise is told by its type.
        if is_pretrained(config) and not isinstance(error, TypeError):
            raise CheckpointError(
                f"The pretrained weights of {name!r} cannot be had: {type(error).__name__}: "
                f"{error}. They are downloaded once, which needs a connection; without one, leave "
                "them out and load a local file by load_from=..."
            ) from error
        if isinstance(error, (TypeError, ValueError, KeyError, AssertionError)):
            raise ConfigError(
                f"Network {name!r} cannot be built with {options}: {error}. Correct its arguments."
            ) from error
        raise
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name!r} gave a {type(network).__name__}, not a torch.nn.Module.")
    return network


def is_pretrained(config: Mapping[str, Any] | nn.Module) -> bool:
    """Whether a network begins with weights that its library loads.

    Of a module that is built already nobody can tell; the answer is False.

    Example:
        >>> is_pretrained(dict(type="torchvision", name="resnet18", weights="DEFAULT"))
        True
        >>> is_pretrained(dict(type="timm", name="resnet18"))
        False
    """
    if isinstance(config, nn.Module):
        return False
    if config.get("type") == "timm":
        return bool(config.get("pretrained") or config.get("checkpoint_path"))
    if config.get("type") == "torchvision":
        return config.get("weights") is not None
    return bool(config.get("pretrained"))


def _torchvision(name: str) -> Callable[..., nn.Module]:
    known = list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(
            f"torchvision has no classifier {name!r}.{did_you_mean(name, known)} "
            "torchvision.models.list_models() lists them."
        )

    def make(weights: Any = None, num_classes: int | None = None, **options: Any) -> nn.Module:
        if name in _AUXILIARY:
            options.setdefault("aux_logits", False)
        if weights is None:
            if num_classes is not None:
                options["num_classes"] = num_classes
            return get_model(name, weights=None, **options)
        chosen = weights
        if isinstance(weights, str):
            available = get_model_weights(name)
            chosen = available.__members__.get(weights.rsplit(".", 1)[-1])
            if chosen is None:
                names = list(available.__members__)
                raise ConfigError(
                    f"{name} has no weights {weights!r}.{did_you_mean(weights, names)} It has: "
                    f"{', '.join(names)}."
                )
        network = get_model(name, weights=chosen, **options)
        theirs = len(chosen.meta["categories"])
        if num_classes not in (None, theirs):
            _replace_last(network, theirs, num_classes)
        return network

    return make


def _replace_last(network: nn.Module, old: int, new: int) -> None:
    """Start the layer of the logits anew, for other classes."""
    for path, layer in reversed(list(network.named_modules())):
        parent, _, attribute = path.rpartition(".")
        if isinstance(layer, nn.Linear) and layer.out_features == old:
            fresh: nn.Module = nn.Linear(layer.in_features, new, layer.bias is not None)
        elif isinstance(layer, nn.Conv2d) and layer.out_channels == old:  # SqueezeNet's
            fresh = nn.Conv2d(layer.in_channels, new, 1, bias=layer.bias is not None)
        else:
            continue
        setattr(network.get_submodule(parent), attribute, fresh)
        return
    raise ConfigError(
        f"{type(network).__name__} has no last layer of {old} classes that could be replaced. "
        "Leave weights or num_classes out."
    )


def _timm(name: str) -> Callable[..., nn.Module]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"Network {name!r} is timm's, which is not installed. Install it by "
            "pip install 'taskdistill[classification]'."
        ) from error
    # `hf-hub:` and the like name a place, `.` a set of weights of the model.
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        known = timm.list_models()
        raise ConfigError(
            f"timm has no model {name!r}.{did_you_mean(name, known)} timm.list_models() lists them."
        )

    def make(num_classes: int | None = None, **options: Any) -> nn.Module:
        if num_classes is not None:
            options["num_classes"] = num_classes
        return timm.create_model(name, **options)

    return make


_LIBRARIES: Mapping[Any, Callable[[str], Callable[..., nn.Module]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}


def _find(kind: Any) -> Callable[..., Any]:
    if callable(kind):
        return kind
    if ":" in str(kind):
        return _import(str(kind))
    found = MODELS.get(str(kind))
    if found is None:
        known = [*MODELS.module_dict, *_LIBRARIES]
        raise ConfigError(
            f"There is no network {kind!r}.{did_you_mean(str(kind), known)} Write 'torchvision' or "
            "'timm' with a name, a class registered in mmengine's MODELS (imported by "
            "custom_imports), or 'package.module:Name'."
        )
    return found


def _import(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"Network {path!r}: module {module_name!r} cannot be imported: {error}. It must be "
            "installed or lie in a folder of PYTHONPATH."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(
            f"Network {path!r}: module {module_name!r} has no class or function {name!r}."
            f"{did_you_mean(name, dir(module))}"
        )
    return found
