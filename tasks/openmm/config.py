"""From a config with a ``distill`` entry to one that mmengine's runner trains."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from ...core.errors import ConfigError, did_you_mean
from ...core.recipe import resolve_loss
from .adapter import adapter_of_scope, task_of
from .optim import CRITIC, STUDENT
from .speed import use_switches
from .teacher import forget_our_scope

__all__ = ["critic_options", "load_config", "plain_config", "prepare_config", "seed_data"]

# What the authors of the holistic term train its discriminator with; their code multiplies its loss
# by 0.1 as well, which configs/segmentation/structured reproduces by a tenth of the learning rate.
_CRITIC = dict(
    optimizer=dict(type="SGD", lr=4e-4, momentum=0.9, weight_decay=5e-4), clip_grad=None, steps=1
)


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and merge command-line options into it.

    Raises:
        ConfigError: If the file is missing or cannot be read.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"Config {path!r} does not exist (looked from {os.getcwd()!r}).")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        raise ConfigError(f"Config {path!r} cannot be read: {error}") from error
    forget_our_scope(cfg._cfg_dict)
    if options:
        try:
            cfg.merge_from_dict(dict(options))
        except (KeyError, TypeError, AssertionError) as error:
            raise ConfigError(f"--cfg-options does not fit config {path!r}: {error}") from error
    if "model" not in cfg:
        raise ConfigError(f"Config {path!r} has no 'model'; inherit the student's own config.")
    return cfg


def plain_config(cfg: Config) -> Config:
    """Return the student's own config: what is left when distillation is taken out."""
    plain = copy.deepcopy(cfg)
    plain.pop("distill", None)
    imports = plain.get("custom_imports")
    # Where the network, or a part of it, is ours, they stay.
    if imports and not plain.get("task") and not _has_own_part(plain.get("model"), plain):
        # Reading the config has imported these; the deployed model must not need us.
        names = [imports.imports] if isinstance(imports.imports, str) else list(imports.imports)
        kept = [name for name in names if name.split(".")[0] != "taskdistill"]
        if kept:
            plain.custom_imports.imports = kept
        else:
            plain.pop("custom_imports")
    return plain


def _has_own_part(model: Any, cfg: Config) -> bool:
    """Whether something of a model's config is built by a class of this package."""
    found = set(_types(model))
    with MODELS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
        classes = [registry.get(name) for name in found]
    return any(getattr(c, "__module__", "").startswith("taskdistill.") for c in classes)


def _types(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _types(value)


def critic_options(distill: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the critics of a recipe are trained, defaults filled in.

    Args:
        distill: A ``distill`` entry; ``critic`` in it may hold ``optimizer`` (SGD, learning rate
            4e-4, momentum 0.9, weight decay 5e-4, as in the code of Liu et al. 2019),
            ``param_scheduler`` (by default polynomial with power 0.9 down to 0 over the run, as
            there), ``clip_grad`` (none) and ``steps`` (critic steps for each of the student, 1).
            Gradients are accumulated over as many batches as the student's.

    Raises:
        ConfigError: If an option is unknown or ``steps`` is no positive number.

    Example:
        >>> critic_options(dict(critic=dict(steps=2)))["steps"]
        2
    """
    given = dict(distill.get("critic") or {})
    known = [*_CRITIC, "param_scheduler"]
    for key in given:
        if key not in known:
            raise ConfigError(f"distill.critic has no {key!r}.{did_you_mean(key, known)}")
    options = {**_CRITIC, **given}
    if not isinstance(options["steps"], int) or options["steps"] < 1:
        raise ConfigError(f"distill.critic.steps is {options['steps']!r}; expected 1 or more.")
    return options


def _has_critic(distill: Mapping[str, Any]) -> bool:
    """Whether a pair plays against the student; lines that cannot be read are told later."""
    for pair in distill.get("pairs") or ():
        loss = pair.get("loss") if isinstance(pair, Mapping) else None
        try:
            if isinstance(loss, str) and getattr(resolve_loss(loss), "adversarial", False):
                return True
        except ConfigError:
            continue
    return False


def _add_critic(cfg: Config) -> None:
    """Give the critics their optimizer and schedule, beside the student's."""
    options = critic_options(cfg.distill)
    cfg.optim_wrapper.critic = ConfigDict(
        steps=options["steps"],
        optimizer=options["optimizer"],
        clip_grad=options["clip_grad"],
        # A step of the one for a step of the other, also where gradients are accumulated.
        accumulative_counts=cfg.optim_wrapper.get("accumulative_counts", 1),
    )
    ours = options.get("param_scheduler")
    if ours is None:
        loop = cfg.get("train_cfg") or {}
        by_epoch = loop.get("max_epochs") is not None
        length = loop.get("max_epochs") or loop.get("max_iters")
        ours = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=length, by_epoch=by_epoch)]
        if by_epoch:
            ours[0]["convert_to_iter_based"] = True
    theirs = cfg.get("param_scheduler") or []
    cfg.param_scheduler = ConfigDict({STUDENT: theirs, CRITIC: ours})


# Classes of data sets that are seeded sample by sample already.
_SEEDED = ("SeededDataset", "PeerOrders")


def seed_data(cfg: Config) -> None:
    """Make the training data of a config, in place, repeat itself sample by sample."""
    loader = cfg.get("train_dataloader")
    if loader and loader.dataset.get("type") not in _SEEDED:
        loader.dataset = ConfigDict(type="SeededDataset", dataset=loader.dataset)
        loop = cfg.get("train_cfg") or {}
        if loop.get("type") == "IterBasedTrainLoop" or loop.get("by_epoch") is False:
            loader.sampler = ConfigDict(type="NumberedSampler", sampler=loader.sampler)


def prepare_config(cfg: Config) -> Config:
    """Wrap the student of a config that has ``distill``; leave any other as it is.

    The student's model, optimizer constructor, data and hooks stay what they are; they are wrapped
    so that terms are added, adapters trained, checkpoints kept deployable and runs repeatable. The
    switches ``amp``, ``channels_last`` and ``compile`` hold for either; see
    :mod:`~taskdistill.tasks.openmm.speed`.

    Raises:
        ConfigError: If the config cannot be wrapped.
    """
    student_config = plain_config(cfg).pretty_text
    cfg = copy.deepcopy(cfg)
    hooks = cfg.setdefault("default_hooks", ConfigDict())
    checkpoint = hooks.get("checkpoint")
    if checkpoint and checkpoint.get("type") == "CheckpointHook":
        checkpoint.type = "SafeCheckpointHook"
    task = task_of(cfg)
    if task is not None:
        adapter_of_scope(task).prepare(cfg)
    use_switches(cfg)
    if cfg.get("distill") is None:
        return cfg
    if task is None:
        raise ConfigError("The config has no default_scope; inherit an mm config, which sets it.")
    if "optim_wrapper" not in cfg:
        raise ConfigError("The config has no optim_wrapper; inherit one of mm's schedules.")
    # The runner hands an entry at the top to the model; it is the student's.
    preprocessor = cfg.pop("data_preprocessor", None)
    if preprocessor is not None:
        cfg.model.setdefault("data_preprocessor", preprocessor)
    cfg.model = ConfigDict(
        type="DistilledModel", student=cfg.model, distill=cfg.distill, scope=task
    )
    wrapper = cfg.optim_wrapper
    wrapper.student_constructor = wrapper.get("constructor", "DefaultOptimWrapperConstructor")
    wrapper.constructor = "DistillOptimWrapperConstructor"
    if _has_critic(cfg.distill):
        _add_critic(cfg)
    seed_data(cfg)
    cfg.custom_hooks = [
        *(cfg.get("custom_hooks") or []),
        ConfigDict(type="DistillHook", student_config=student_config),
    ]
    return cfg
