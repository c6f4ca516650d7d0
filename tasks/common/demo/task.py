"""What a task brings to a demo, and what the user can choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from torch import nn

from ....core.errors import ConfigError
from .comparison import ALONE, TEACHER, Metric, Role, make_roles
from .jobs import Job
from .report import Gallery, Section

__all__ = ["TEACHER_SEED", "DemoOptions", "DemoTask", "run_name"]

TEACHER_SEED = 0

C = TypeVar("C")


@dataclass(frozen=True)
class DemoOptions:
    """What the user can choose.

    Attributes:
        root: Folder that holds ``configs`` and ``tools``.
        work_dir: Folder for logs, checkpoints and the report.
        seeds: Students trained alone, and of each distilled variant.
        jobs: Training processes at once; ``None`` for one a core.
        epochs: Epochs of every run instead of the configs' own; schedules shrink along.
        fresh: Forget earlier runs in ``work_dir``.
        command: The command line, for the report.
    """

    root: Path
    work_dir: Path
    seeds: int = 1
    jobs: int | None = None
    epochs: int | None = None
    fresh: bool = False
    command: str = ""


def run_name(role: str, seed: int) -> str:
    """Return the name of a run, which its folder has too; there is one teacher for all seeds.

    Example:
        >>> run_name("teacher", 0), run_name("distilled", 1)
        ('teacher', 'distilled-1')
    """
    return role if role == TEACHER else f"{role}-{seed}"


class DemoTask(ABC, Generic[C]):
    """What is particular to a task, whose configs are of type ``C``.

    The configs are those of the teacher, the student alone and each distilled variant, in
    ``configs/<folder>``: ``teacher``, ``student`` and the names of the variants, with ``suffix``.

    Attributes:
        name: Name on the command line.
        folder: Folder of its configs under ``configs``.
        title: Heading of the report.
        metrics: The validation figures of the table; the first decides.
        packages: Distributions whose versions the report lists.
        latency_note: What one timed call takes in.
        variants: Label of each distilled variant by its name, an identifier. With several, the
            report compares them and names the best.
        derived: Label, by name, of each further variant whose network comes out of other runs (a
            search); :meth:`further_jobs` makes them.
        class_figure: What :meth:`class_metrics` are, for the heading of their table.
        sample: What one sample of the data is called; an "s" makes it several.
        suffix: Of the names of the config files.
        evaluation: What in a config decides which validation figures there are, for errors.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[Sequence[Metric]]
    packages: ClassVar[Sequence[str]]
    latency_note: ClassVar[str]
    variants: ClassVar[Mapping[str, str]] = {"distilled": "student distilled"}
    derived: ClassVar[Mapping[str, str]] = {}
    class_figure: ClassVar[str] = "Validation figure"
    sample: ClassVar[str] = "image"
    suffix: ClassVar[str] = ".py"
    evaluation: ClassVar[str] = "the evaluation"

    # -- configs ----------------------------------------------------------------------------------

    def roles(self) -> list[Role]:
        """Return what is compared: teacher, student alone, and the variants."""
        return make_roles(self.variants, self.derived, self.suffix)

    def load_configs(self, folder: Path) -> dict[str, C]:
        """Read the configs of the demo.

        Args:
            folder: Where they are.

        Returns:
            The configs by name of the role, in the order of the tables.

        Raises:
            ConfigError: One of the files is absent or cannot be read.
        """
        configs = {}
        for role in self.roles():
            if not role.config:
                continue
            path = folder / role.config
            if not path.is_file():
                raise ConfigError(
                    f"Expected the demo's config {path}, and it is not there. Run the command from "
                    "a complete source tree, or install the package again."
                )
            configs[role.name] = self.load_config(path)
        return configs

    @abstractmethod
    def load_config(self, path: Path) -> C:
        """Read one config from a file that exists.

        Raises:
            ConfigError: It cannot be read.
        """

    def plain(self, cfg: C) -> C:
        """Return the config that describes the network alone, without what trains it.

        It is what :meth:`load`, :meth:`forward_call` and :meth:`predict_call` are given; by default
        the config itself.
        """
        return cfg

    @abstractmethod
    def sources(self, cfg: C) -> tuple[str, str]:
        """Return the text of a config's file, and the text with all it inherits.

        The second is empty where nothing is inherited.
        """

    def derived_config(self, role: str, job: Job) -> C:
        """Return the plain config of the network that a derived variant's run left behind."""
        raise NotImplementedError(f"{type(self).__name__} has no derived variants")

    # -- runs -------------------------------------------------------------------------------------

    def plan(self, configs: Mapping[str, C], options: DemoOptions) -> list[Job]:
        """Return the runs: one teacher, and for each seed one student of every other role.

        Args:
            configs: The configs by role: teacher, student alone, and the distilled variants.
            options: The user's choices.

        Raises:
            ConfigError: No seed is asked for, or a config cannot be trained as asked.
        """
        if options.seeds < 1:
            raise ConfigError(f"Expected at least one seed, got --seeds {options.seeds}.")
        teacher = replace(
            self.training_job(TEACHER, TEACHER_SEED, configs, options, None),
            role=TEACHER,
            exclusive=True,
            effort=2.0,
        )
        jobs = [teacher]
        for role in (name for name in configs if name != TEACHER):
            for seed in range(options.seeds):
                if role == ALONE:
                    job = self.training_job(role, seed, configs, options, None)
                    jobs.append(replace(job, role=role, effort=1.0))
                else:
                    job = self.training_job(role, seed, configs, options, teacher)
                    jobs.append(replace(job, role=role, effort=1.5, needs=(teacher.name,)))
        return jobs

    @abstractmethod
    def training_job(
        self,
        role: str,
        seed: int,
        configs: Mapping[str, C],
        options: DemoOptions,
        teacher: Job | None,
    ) -> Job:
        """Return one run that trains a network.

        :meth:`plan` adds the role, what the run needs, and its place in the queue.

        Args:
            role: What the run stands for.
            seed: Seed of everything random in it.
            configs: The configs by role.
            options: The user's choices. The run goes by :func:`run_name`, in a folder of that name.
            teacher: The run whose checkpoint the network learns from; ``None`` where it does not.

        Raises:
            ConfigError: The config cannot be trained as asked.
        """

    def further_jobs(
        self, folder: Path, configs: Mapping[str, C], jobs: Sequence[Job], options: DemoOptions
    ) -> list[Job]:
        """Return the runs behind the derived variants; none by default.

        Args:
            folder: Folder of the configs.
            configs: The configs by role.
            jobs: The runs of teacher, student alone and the distilled variants.
            options: The user's choices.
        """
        return []

    # -- data and models --------------------------------------------------------------------------

    def class_metrics(self, cfg: C) -> Sequence[Metric]:
        """Return further validation figures, one a class, labelled with its name; none by default.

        Args:
            cfg: The config of the student alone.
        """
        return ()

    @abstractmethod
    def prepare(self, cfg: C) -> str:
        """Make the data that ``cfg`` trains and validates on; describe it in a sentence."""

    @abstractmethod
    def load(self, cfg: C, checkpoint: Path) -> nn.Module:
        """Build the plain model of ``cfg`` on the CPU and load ``checkpoint`` strictly."""

    def deployed(self, model: nn.Module) -> nn.Module:
        """Return the part of a model that is deployed, whose parameters count; by default all."""
        return model

    @abstractmethod
    def forward_call(self, model: nn.Module, cfg: C) -> Callable[[], object]:
        """Return a function that runs the network alone on one validation sample."""

    @abstractmethod
    def predict_call(self, model: nn.Module, cfg: C) -> Callable[[], object]:
        """Return a function that predicts on one validation sample."""

    # -- report -----------------------------------------------------------------------------------

    def gallery(self, cfg: C, models: Mapping[str, nn.Module]) -> Gallery | None:
        """Return pictures of the truth and of what each model makes of validation samples.

        Args:
            cfg: The config of the student alone.
            models: The models by their labels: teacher, student alone, and the best variant.

        Returns:
            The pictures; ``None``, as by default, where samples cannot be seen.
        """
        return None

    def further_sections(
        self, jobs: Sequence[Job], models: Mapping[str, nn.Module]
    ) -> list[Section]:
        """Return sections of the report that this task alone has; none by default.

        Args:
            jobs: All runs; they are over.
            models: The models by their labels, as in :meth:`gallery`.
        """
        return []
