"""Config files in YAML or JSON that build on one another.

A config is a mapping of flat keys. ``_base_`` names one or several files that it builds on::

    _base_: [teacher.yaml, taskdistill::nlp/glue/teacher.yaml]
    task: mrpc
    output_dir: work_dirs/glue/${task}/distilled    # the value of another key
    train_file: ${DATA}/mrpc/train.tsv              # where there is none: of the environment
    distill: {task_weight: 0.5}                     # merged into the base's distill

Keys of later files win and mappings are merged; everything else, lists included, is replaced.
``null`` sets a key back to its default, also one of a nested mapping.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import taskdistill

from ...core.errors import ConfigError, did_you_mean

__all__ = ["BASE", "config_path", "fill_in", "merge", "packaged_configs", "read_settings"]

BASE = "_base_"
"""The key that names what a config builds on."""

_PACKAGED = "taskdistill::"
_SUFFIXES = (".yaml", ".yml", ".json")
_REFERENCE = re.compile(r"\$\{(\w+)\}")


class _Loader(yaml.SafeLoader):
    """Reads numbers and switches as YAML 1.2 does, and no key twice.

    In YAML 1.1 ``1e-5`` is a string and ``eval_strategy: no`` the number false.
    """

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"key {key.value!r} stands there twice, again in line {line}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan)$", re.I),
    list("-+.0123456789"),
)


def packaged_configs() -> Path:
    """Return the folder that ``taskdistill::`` stands for: of the checkout, or as installed."""
    package = Path(taskdistill.__file__).parent
    installed = package / ".mim" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_path(name: str, beside: Path | None = None) -> Path:
    """Find a config file.

    Args:
        name: A path, or ``taskdistill::nlp/...`` for one that comes with the package.
        beside: The folder that a relative path starts from; the current one by default.

    Raises:
        ConfigError: If there is no such file; offers the nearest names.

    Example:
        >>> config_path("taskdistill::nlp/glue/teacher.yaml").name
        'teacher.yaml'
    """
    if name.startswith(_PACKAGED):
        path = packaged_configs() / name.removeprefix(_PACKAGED)
    else:
        path = (beside or Path()) / Path(name).expanduser()
    if not path.is_file():
        there = path.parent.glob("*") if path.parent.is_dir() else ()
        near = did_you_mean(path.name, (p.name for p in there if p.suffix in _SUFFIXES))
        raise ConfigError(f"Config {name!r} does not exist (looked for {str(path)!r}).{near}")
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"Config {name!r} must be a YAML or JSON file: {', '.join(_SUFFIXES)}.")
    return path


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``changes`` over ``base``: mappings are merged, everything else is replaced.

    Example:
        >>> merge({"a": {"x": 1, "y": 2}, "b": [1, 2]}, {"a": {"y": 3}, "b": [0]})
        {'a': {'x': 1, 'y': 3}, 'b': [0]}
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def read_settings(name: str) -> dict[str, Any]:
    """Read a config with all that it builds on; ``${key}`` is left as it stands.

    Args:
        name: See :func:`config_path`.

    Raises:
        ConfigError: If a file is missing, cannot be read, holds no mapping, or builds on itself.

    Example:
        >>> read_settings("taskdistill::nlp/glue/teacher.yaml")["model"]
        'bert-base-uncased'
    """
    return _read(config_path(name), ())


def fill_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each ``${key}`` in the strings of a config by the value of that key.

    A name that is no key of the config is a variable of the environment.

    Args:
        settings: Flat keys; strings anywhere below them are looked at.

    Raises:
        ConfigError: If a reference names neither, no plain value, or leads back to itself.

    Example:
        >>> fill_in({"task": "mrpc", "distill": {"teacher": "runs/${task}"}})["distill"]
        {'teacher': 'runs/mrpc'}
    """
    return {key: _filled(value, settings, (key,)) for key, value in settings.items()}


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in above:
        ring = " -> ".join(str(p) for p in (*above, path))
        raise ConfigError(f"Config {str(path)!r} builds on itself: {ring}.")
    try:
        text = path.read_text(encoding="utf-8")
        own = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"Config {str(path)!r} cannot be read: {error}") from error
    if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise ConfigError(
            f"Config {str(path)!r} must be a mapping of keys: 'task: sst2' and so on."
        )
    bases = own.pop(BASE, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{BASE} of config {str(path)!r} is {bases!r}; expected a file or a list of files."
        )
    settings: dict[str, Any] = {}
    for base in bases:
        settings = merge(settings, _read(config_path(base, path.parent), (*above, path)))
    return merge(settings, own)


def _filled(value: Any, settings: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(item, settings, within) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, settings, within) for item in value]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        key = match[1]
        if key in within:
            raise ConfigError(f"${{{key}}} in {value!r} leads back to itself.")
        found = settings.get(key)
        if found is None and key in os.environ:
            return os.environ[key]
        if found is None:
            near = did_you_mean(key, (k for k, v in settings.items() if v is not None))
            raise ConfigError(
                f"{value!r} refers to {key!r}, which neither the config nor the environment sets."
                f"{near} Write it in the config, give it as the flag --{key}, or export it."
            )
        if isinstance(found, (Mapping, list)):
            raise ConfigError(f"{value!r} refers to {key!r}, which is no plain value: {found!r}.")
        return str(_filled(found, settings, (*within, key)))

    return _REFERENCE.sub(replaced, value)
