"""mmengine's runner, with checkpoints written whole or not at all, and read safely."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ...core.errors import CheckpointError
from .model import DistilledModel
from .parallel import AlternatingDataParallel, DistilledDataParallel
from .speed import lay_out, make_amp_safe, set_layout
from .teacher import SAFE_GLOBALS, read_mm_checkpoint

__all__ = ["DistillRunner", "latest_checkpoint"]


@RUNNERS.register_module()
class DistillRunner(Runner):
    """A runner that behaves as mmengine's where nothing goes wrong.

    - A checkpoint appears under its name only when it is complete (written beside, then renamed).
    - Local checkpoints are read with ``weights_only=True``; a file that would run code is refused.
    - Data-parallel training works without a GPU (gloo).
    """

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up the environment; without a GPU, join the process group by gloo."""
        on_cpu = not torch.cuda.is_available()
        if (
            self.distributed
            and on_cpu
            and self._launcher == "pytorch"
            and not dist.is_initialized()
        ):
            dist.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Make the model what the config's switches say, and wrap it for data-parallel training."""
        if self.cfg.get("channels_last"):
            lay_out(model)
        if self.cfg.get("amp"):
            make_amp_safe(model)
        ours = _parallel_type(model)
        if self.distributed and ours is not None and model_wrapper_cfg is None:
            model_wrapper_cfg = dict(
                type=ours.__name__,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get("find_unused_parameters", False),
            )
        if not self.distributed or torch.cuda.is_available():
            return super().wrap_model(model_wrapper_cfg, model)
        options = dict(model_wrapper_cfg or {})
        options.pop("type", None)
        options.setdefault("broadcast_buffers", False)
        options.setdefault("find_unused_parameters", self.cfg.get("find_unused_parameters", False))
        wrapper = ours or MMDistributedDataParallel
        return wrapper(module=model, **options)  # type: ignore[arg-type]

    def _init_model_weights(self) -> None:
        """Initialise the model with the weights that it has in the plain layout: random numbers are
        drawn in the order of memory.
        """
        if not self.cfg.get("channels_last"):
            super()._init_model_weights()
            return
        set_layout(self.model, torch.contiguous_format)
        super()._init_model_weights()
        set_layout(self.model, torch.channels_last)

    def _maybe_compile(self, target: str) -> None:
        """Leave what the config's ``compile`` says to :class:`.speed.CompileHook`.

        mmengine compiles the whole step: the teacher, the losses and the label assignment with it.
        """

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint after seeing that it is whole and needs no code to load.

        Raises:
            CheckpointError: If it is missing, truncated or unsafe.
        """
        if "://" not in filename:
            read_mm_checkpoint(filename)
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return super().load_checkpoint(filename, *args, **kwargs)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint beside its place and move it there once it is complete.

        Only the main process writes, and calls the hooks' ``before_save_checkpoint``. What takes
        all processes, a hook does before, in ``before_checkpoint(runner)``.
        """
        self.call_hook("before_checkpoint")
        if "://" in out_dir:
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        partial = f".{filename}.partial"
        source, target = os.path.join(out_dir, partial), os.path.join(out_dir, filename)
        try:
            super().save_checkpoint(out_dir, partial, *args, **kwargs)
            # Other processes come by while the main one still writes.
            if is_main_process():
                with open(source, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(source, target)
        finally:
            if is_main_process() and os.path.isfile(source):
                os.remove(source)


def _parallel_type(model: nn.Module) -> type[MMDistributedDataParallel] | None:
    """Our wrapper of a model whose steps mmengine's does not know, ``None`` for any other."""
    if isinstance(model, DistilledModel):
        return DistilledDataParallel
    return AlternatingDataParallel if hasattr(model, "alternate") else None


def latest_checkpoint(work_dir: str) -> str | None:
    """Return the newest complete checkpoint of a run, or ``None`` if it has none yet.

    mmengine's ``last_checkpoint`` file is believed where it names an existing file; after a crash
    in the middle of writing it, the file names tell.
    """
    note = os.path.join(work_dir, "last_checkpoint")
    if os.path.isfile(note):
        with open(note, encoding="utf-8") as file:
            named = file.read().strip()
        # A run that was moved keeps its files beside the note.
        for path in (named, os.path.join(work_dir, os.path.basename(named))):
            if named and os.path.isfile(path):
                return path
    numbered = [
        (int(match[1]), path)
        for path in glob.glob(os.path.join(work_dir, "*.pth"))
        if (match := re.fullmatch(r"(?:epoch|iter)_(\d+)\.pth", os.path.basename(path)))
    ]
    return max(numbered)[1] if numbered else None


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a prepared config; nothing that belongs to an earlier run is touched.

    Raises:
        CheckpointError: If ``load_from`` names a file that does not exist.
    """
    path = cfg.get("load_from")
    if path and "://" not in path and not os.path.isfile(path):
        raise CheckpointError(f"Checkpoint {path!r} (load_from) does not exist.")
    if cfg.get("resume") and path and "://" not in path:
        _keep_seed(cfg, path)
    kind = cfg.get("runner_type", "DistillRunner")
    cls = RUNNERS.get(kind)
    assert cls is not None, f"runner_type={kind!r} is not registered"
    return cls.from_cfg(cfg)


def _keep_seed(cfg: Config, checkpoint: str) -> None:
    """Resume a run that drew its own seed with that one: the sampler is built with it."""
    randomness = cfg.get("randomness") or {}
    if randomness.get("seed") is None:
        meta = read_mm_checkpoint(checkpoint).get("meta", {})
        cfg.randomness = {**randomness, "seed": meta.get("seed")}
