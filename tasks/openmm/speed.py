"""Three switches at the top of a config that make the student's steps faster.

Each is for training with or without a teacher, so that the student alone can be compared::

    amp = True             # or "bf16", "fp16": mixed precision
    channels_last = True   # images and convolutions laid out channels-last
    compile = True         # or dict(mode=..., dynamic=..., backend=...), for torch.compile

On the command line they are ``--cfg-options amp=bf16 channels_last=True compile=True``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ...core.errors import ConfigError, did_you_mean
from ...core.taps import compiled_call, guard_hooks, map_tensors, take_in, tried
from .model import DistilledModel, student_of
from .operators import plain_operators

__all__ = [
    "SWITCHES",
    "CompileHook",
    "PlainLayoutHook",
    "compile_options",
    "lay_out",
    "make_amp_safe",
    "set_layout",
    "use_amp",
    "use_switches",
]

SWITCHES = ("amp", "channels_last", "compile")
"""Their names at the top of a config."""

_AMP = (True, False, None, "bf16", "fp16")
_COMPILE = ("mode", "dynamic", "backend", "fullgraph", "options")
# These standardise their weights by a view, which another layout does not allow.
_VIEWED = ("ConvWS2d", "ConvAWS2d")


def use_switches(cfg: Config) -> None:
    """Do, in place, what of the switches is done in the config.

    Raises:
        ConfigError: If a switch has a value it does not know, or does not go with the device or the
            recipe.
    """
    use_amp(cfg)
    hooks = [*(cfg.get("custom_hooks") or [])]
    if _on(cfg, "channels_last"):
        hooks.append(dict(type="PlainLayoutHook", priority="LOWEST"))
    if (options := compile_options(cfg.get("compile"))) is not None:
        for pair in (cfg.get("distill") or {}).get("pairs") or ():
            if isinstance(pair, Mapping) and "input_gradient" in str(pair.get("student")):
                raise ConfigError(
                    "compile does not go with outputs.input_gradient: that is differentiated "
                    "twice, which torch.compile cannot. Leave one of them out."
                )
        hooks.append(dict(type="CompileHook", options=options))
    cfg.custom_hooks = hooks


def use_amp(cfg: Config) -> None:
    """Give the optimizer wrapper of a config, in place, the mixed precision its ``amp`` asks for.

    ``True`` is float16 on a GPU and bfloat16 on a CPU. In float16 losses are scaled up, so that
    small gradients do not vanish, by a factor found while training; bfloat16 needs none. Critics of
    a recipe learn in float32.

    Raises:
        ConfigError: If ``amp`` is something else, or ``"fp16"`` on a CPU.

    Example:
        >>> cfg = Config(dict(amp="bf16", optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1))))
        >>> use_amp(cfg)
        >>> "Amp" in cfg.optim_wrapper.type
        True
    """
    amp = cfg.get("amp")
    if not any(amp is known or amp == known and isinstance(amp, str) for known in _AMP):
        raise ConfigError(
            f"amp={amp!r} is none of {', '.join(map(repr, _AMP))}."
            f"{did_you_mean(str(amp), ['bf16', 'fp16'])}"
        )
    wrapper = cfg.get("optim_wrapper")
    if not amp or wrapper is None:
        return
    if torch.cuda.is_available():
        half = amp != "bf16"
        wrapper.type = "AmpOptimWrapper"
        wrapper.dtype = "float16" if half else "bfloat16"
        if not half:
            wrapper.loss_scale = dict(enabled=False)
        elif not wrapper.get("loss_scale") or wrapper.loss_scale == dict(enabled=False):
            wrapper.loss_scale = "dynamic"
        return
    if amp == "fp16":
        raise ConfigError(
            "amp='fp16' needs a GPU, of which torch finds none: on a CPU float16 is slow, and its "
            "small gradients would vanish, as losses are not scaled there. Write amp='bf16'."
        )
    # mmengine's wrapper insists on a GPU; bfloat16 on a CPU needs no loss scaling.
    wrapper.type = "CpuAmpOptimWrapper"
    for key in ("dtype", "loss_scale", "use_fsdp"):
        wrapper.pop(key, None)


def make_amp_safe(model: nn.Module) -> None:
    """Keep from half precision what of a detector does not know it.

    mmcv's operators get float32 (:func:`.operators.plain_operators`), and so does the non-maximum
    suppression of a region proposal head's boxes within the step.

    Args:
        model: A model of mmengine, plain or distilled; changed in place.
    """
    _plain_operators(model)
    head = getattr(student_of(model), "rpn_head", None)
    if isinstance(head, nn.Module):
        head.register_forward_hook(_in_float32)


def _in_float32(module: nn.Module, args: Any, output: Any) -> Any:
    return map_tensors(output, lambda t: t.float() if t.is_floating_point() else t)


def compile_options(value: Any) -> dict[str, Any] | None:
    """Return what ``torch.compile`` is given, or None where nothing is compiled.

    Args:
        value: The ``compile`` of a config: True, False, None, or a dict of ``mode``, ``dynamic``,
            ``backend``, ``fullgraph`` and ``options``.

    Raises:
        ConfigError: If it is something else, or the backend is none of torch's.

    Example:
        >>> compile_options(True), compile_options(False)
        ({}, None)
    """
    if value is None or value is False:
        return None
    if value is True:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"compile={value!r}; expected True, False, or a dict of torch.compile's options, e.g. "
            "dict(mode='reduce-overhead')."
        )
    for key in value:
        if key not in _COMPILE:
            raise ConfigError(
                f"compile has no {key!r}.{did_you_mean(key, _COMPILE)} It takes "
                f"{', '.join(_COMPILE)}."
            )
    backend = value.get("backend")
    if isinstance(backend, str):
        known = torch._dynamo.list_backends(exclude_tags=())
        if backend not in known:
            raise ConfigError(
                f"compile.backend={backend!r} is no backend of torch.compile."
                f"{did_you_mean(backend, known)}"
            )
    return dict(value)


def _on(cfg: Config, name: str) -> bool:
    value = cfg.get(name)
    if value not in (True, False, None) or isinstance(value, int) and not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}; expected True or False.")
    return bool(value)


# -- channels last ---------------------------------------------------------------------------------


def lay_out(model: nn.Module) -> None:
    """Lay the weights of a model's convolutions and the images it is given out channels-last.

    What it computes stays the same but for rounding. Operators of mmcv that read their input as it
    lies in memory are given plain tensors, in teachers too, which see the same images.

    Args:
        model: A model of mmengine, plain or distilled; changed in place.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
        >>> lay_out(net)
        >>> net[1].weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    set_layout(model, torch.channels_last)
    _plain_operators(model)
    preprocessor = getattr(model, "data_preprocessor", None)
    if isinstance(preprocessor, nn.Module):
        preprocessor.register_forward_hook(_lay_images_out)


def set_layout(model: nn.Module, layout: torch.memory_format) -> None:
    """Lay the weights of a network's convolutions out, in place.

    Args:
        model: Any network.
        layout: ``torch.channels_last`` or ``torch.contiguous_format``.
    """
    for module in model.modules():
        convolves = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        if convolves and type(module).__name__ not in _VIEWED:
            # Not its `weight`, which a parametrisation (spectral norm) would make anew.
            for parameter in module.parameters():
                if parameter.dim() == 4:
                    # The same parameter: an optimizer may hold it already.
                    parameter.data = parameter.data.contiguous(memory_format=layout)


def _plain_operators(model: nn.Module) -> None:
    """See :func:`.operators.plain_operators`; of the teachers too, which see the same images."""
    plain_operators(model)
    if isinstance(model, DistilledModel):
        for teacher in model.distiller.teachers.values():
            plain_operators(teacher.network)


def _lay_images_out(module: nn.Module, args: Any, batch: Any) -> Any:
    images = batch.get("inputs") if isinstance(batch, dict) else None
    if isinstance(images, Tensor) and images.dim() == 4:
        batch["inputs"] = images.contiguous(memory_format=torch.channels_last)
    return batch


@HOOKS.register_module()
class PlainLayoutHook(Hook):
    """Keep in checkpoints the tensors of a channels-last model as any other model's lie.

    The optimizer's stay as they are: they are of no use but to the same run, resumed.
    """

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Exchange the tensors, after all other hooks."""
        for key in checkpoint:
            if key != "optimizer":
                checkpoint[key] = _plain(checkpoint[key])


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.contiguous()
    if isinstance(value, dict):
        for key, entry in value.items():
            value[key] = _plain(entry)
    elif isinstance(value, list):
        value[:] = [_plain(entry) for entry in value]
    return value


# -- compile ---------------------------------------------------------------------------------------


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile the student's networks in place, leaving losses and label assignment as they are.

    The first step runs as it is. What it called with tensors alone, at the outermost level and with
    modules inside, is compiled for the steps that follow: a classifier's network; a detector's
    backbone, neck and head. Names, state dicts and taps stay what they are. Evaluation is not
    compiled: its images have sizes of their own. Teachers have a ``compile`` of their own.

    A module that cannot be compiled goes on as it is, with one warning.

    Args:
        options: For ``torch.compile``.
    """

    priority = "VERY_LOW"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self._watch: _Watch | None = None

    def before_train(self, runner: Any) -> None:
        """Look on at the first step."""
        model = getattr(runner.model, "module", runner.model)
        self._watch = _Watch(model.student if isinstance(model, DistilledModel) else model)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Compile what the first step called."""
        if self._watch is None:
            return
        found, self._watch = self._watch.end(), None
        if not found:
            print_log(
                "compile: the first step called no network with tensors alone; nothing is "
                "compiled.",
                "current",
                logging.WARNING,
            )
            return
        guard_hooks()
        for name, module in found.items():
            compile_module(module, name, self.options)
        print_log(f"Compiled from the next step on: {', '.join(found)}.", "current")

    def after_train(self, runner: Any) -> None:
        """Leave no hook behind where there was no step."""
        if self._watch is not None:
            self._watch.end()
            self._watch = None


class _Watch:
    """Finds the outermost modules that are called with tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules() if name}
        self._found: dict[nn.Module, None] = {}
        self._inside: list[bool] = []
        self._handles: list[Any] = []
        for module in self._names:
            self._handles += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        outermost = (
            not any(self._inside)
            and module.training
            and _of_tensors((args, kwargs))
            and any(True for _ in module.parameters())
        )
        self._inside.append(outermost)
        if outermost:
            self._found[module] = None

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside.pop()

    def end(self) -> dict[str, nn.Module]:
        """Stop looking on; give the modules by name, those of one operation left out."""
        for handle in self._handles:
            handle.remove()
        return {
            self._names[module]: module
            for module in self._found
            if next(module.children(), None) is not None
            or not type(module).__module__.startswith("torch.nn.")
        }


def _of_tensors(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_of_tensors, value))
    if isinstance(value, Mapping):
        return all(map(_of_tensors, value.values()))
    return value is None or isinstance(value, (Tensor, bool, int, float))


def compile_module(module: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    """Compile one module in place, for training.

    Its names, its state dict and its hooks stay; a copy of it is not compiled.

    Args:
        module: The module.
        name: For messages.
        options: For ``torch.compile``.
    """

    compiled: Callable[..., Any] | None = compiled_call(module, name, options)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        if compiled is None or not module.training:
            return module._call_impl(*args, **kwargs)
        # What runs eagerly meanwhile finds nothing left over, and the next call an empty box.
        with tried() as forget:
            try:
                result = compiled(*args, **kwargs)
            except _compiler_error() as error:
                compiled = None
                forget()
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                print_log(
                    f"{name} ({type(module).__name__}) cannot be compiled and goes on as it is: "
                    f"{type(error).__name__}: {' '.join(lines[:2])}",
                    "current",
                    logging.WARNING,
                )
                return module._call_impl(*args, **kwargs)
        take_in()
        return result

    module._compiled_call_impl = call  # type: ignore[assignment]


def _compiler_error() -> type[Exception]:
    from torch._dynamo.exc import TorchDynamoException  # imported where something is compiled

    return TorchDynamoException
