"""A student of transformers, its teachers and a recipe, made ready for training."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.distiller import Context, Distiller, Outputs, Region, Term
from ...core.errors import CheckpointError, ConfigError
from ...core.modes import evaluating
from ...core.recipe import Pair, Progress, members, output_name
from ...core.stages import Holding
from ...core.taps import Captured, Taps
from ...core.teacher import FrozenTeacher, read_checkpoint, state_sha256
from .models.ib_bert import copy_embeddings_and_head
from .outputs import (
    ADAPTED,
    Reader,
    count_positions,
    default_regions,
    example_inputs,
    lay_out,
    position_weights,
    targets_of,
    token_mask,
    trial_inputs,
    use_attention_maps,
)
from .progressive import ProgressiveTraining
from .recipes import Plan, Shape, make_plan
from .remember import CacheOptions, RememberedTeacher
from .teacher import model_of
from .vocabulary import (
    check_labels,
    check_vocabulary,
    check_vocabulary_logits,
    load_tokenizer_of,
)

__all__ = ["STATE_FILE", "Distillation"]

logger = logging.getLogger(__name__)

STATE_FILE = "distillation.pt"
"""What a checkpoint folder holds beside the student: adapters, and which teachers they go with."""

Teachers = Mapping[str, nn.Module | FrozenTeacher]


class Distillation:
    """Everything that goes along with a student in training.

    Making it checks all that can be checked before training: vocabularies, labels, layers, heads
    and shapes, on two short made-up sequences. The student is not changed, but for its attention
    implementation while training (:meth:`active`) and, where the recipe says so, its embeddings and
    head.

    Args:
        student: The network in training.
        teachers: The teachers by name.
        spec: The recipe, as :func:`.recipes.make_plan` reads it.
        tokenizer: The student's; None where it is not known.
        teacher_tokenizers: The teachers', by name, where they are known.
        seed: Of the adapters.
        cache: Where the teachers' answers are kept; None asks them at every step.

    Raises:
        DistillError: If anything does not fit.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Teachers,
        spec: Any,
        *,
        tokenizer: Any = None,
        teacher_tokenizers: Mapping[str, Any] | None = None,
        seed: int = 0,
        cache: CacheOptions | None = None,
    ) -> None:
        self.student = student
        self.cache = cache
        self.remembered: dict[str, RememberedTeacher] = {}
        """Teachers whose answers are looked up; filled by :func:`.caching.ensure`."""
        models = {name: model_of(teacher) for name, teacher in teachers.items()}
        shapes = {name: Shape.of(getattr(m, "config", None)) for name, m in models.items()}
        if not shapes:
            raise ConfigError("There is no teacher: the mapping of teachers is empty.")
        self.plan: Plan = make_plan(spec, Shape.of(getattr(student, "config", None)), shapes)
        recipe = self.plan.recipe
        served = recipe.by_teacher(models)
        for name, model in models.items():
            _check_fit(
                student, model, served[name], tokenizer, (teacher_tokenizers or {}).get(name)
            )
        ours = _outputs_of(recipe.pairs, "student")
        theirs = {name: _outputs_of(pairs, "teacher") for name, pairs in served.items()}
        self.reader = Reader(student, ours, "student")
        self.readers = {
            name: Reader(m, theirs[name], f"teacher {name!r}") for name, m in models.items()
        }
        if "attentions" in ours:
            _warn_of_dropout(student)
        self._models = models
        with self.active():
            for name, model in models.items():
                if "attentions" in theirs[name]:
                    use_attention_maps(model, f"teacher {name!r}")
            if self.plan.copy:
                copied = copy_embeddings_and_head(student, next(iter(models.values())))  # type: ignore
                logger.info("Copied from the teacher: %s.", ", ".join(copied))
            example = example_inputs([student, *models.values()])
            self.token_level = _token_level(student, example)
            self.distiller = Distiller(
                student,
                dict(teachers),
                recipe,
                outputs=self._features,
                reads=self.reader.reads,
                teacher_reads={name: reader.reads for name, reader in self.readers.items()},
                default_region=default_regions(self.token_level),
                adapted=ADAPTED,
            )
            self._regions = sorted(
                {r for p in recipe.pairs if (r := self.distiller.region_of(p)) is not None}
            )
            self.progressive = (
                ProgressiveTraining(student, self.plan.layer_stages)
                if self.plan.layer_stages is not None
                else None
            )
            self.holding = Holding(self.distiller)
            self._try(example, seed)
        self.fingerprints = {name: state_sha256(model) for name, model in models.items()}

    # -- before training --------------------------------------------------------------------------

    def _features(self, output: Any) -> Outputs:
        """The outputs that go through adapters, of either side."""
        states = output.get("hidden_states") if isinstance(output, Mapping) else None
        return {"hidden_states": states, "embeddings": states[0]} if states else {}

    def _try(self, example: dict[str, Tensor], seed: int) -> None:
        """Make the adapters, and compute every term once: what does not fit is told now."""
        distiller = self.distiller
        with torch.random.fork_rng(devices=[]):
            # The student's own random numbers are as without distillation.
            torch.manual_seed(seed)
            distiller.setup(
                lambda **batch: self.student(**batch, **self.reader.asks),
                lambda name: (
                    lambda **batch: distiller.teachers[name].network(
                        **batch, **self.readers[name].asks
                    )
                ),
                trial=((), trial_inputs([self.student, *self._models.values()])),
                **example,
            )
        whole = {**example, "attention_mask": torch.ones_like(example["attention_mask"])}
        with torch.no_grad(), evaluating(self.student):
            self.reader.check_scores(self.student, whole)
            for name, reader in self.readers.items():
                reader.check_scores(self._models[name], whole)
            with distiller.watch() as seen:
                output = self.student(**example, **self.reader.asks)
            taught = {name: self.ask(name, example) for name in distiller.teachers}
            context = self._context(seen, output, taught, example, made_up=True)
            captured = {name: found for name, (found, _) in taught.items()}
            for stage in self._stages():
                distiller.terms(seen, captured, context, stage)

    def _stages(self) -> list[Progress]:
        """A moment in every stretch in which the same pairs are active."""
        recipe = self.plan.recipe
        starts = {0.0, *(p.start + p.warmup for p in recipe.pairs)}
        starts |= {stage.until for stage in recipe.stages if stage.until is not None}
        return [Progress(step=math.ceil(at), epoch=float(at)) for at in sorted(starts)]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While the block runs, the student gives out what the recipe compares."""
        before = None
        if "attentions" in self.reader.names:
            before = use_attention_maps(self.student, "student")
            if before is not None:
                logger.info("The student runs eager attention while it is distilled, for its maps.")
        try:
            yield
        finally:
            if before is not None:
                self.student.set_attn_implementation(before)  # type: ignore[operator]

    # -- one batch --------------------------------------------------------------------------------

    @property
    def partner_parameters(self) -> list[nn.Parameter]:
        """What is trained with the student: adapters, and what losses learn."""
        return self.distiller.partner_parameters()

    @property
    def teacher_columns(self) -> list[str]:
        """Inputs that some teacher takes and the student does not."""
        found = [c for reader in self.readers.values() for c in reader.columns]
        return [c for c in dict.fromkeys(found) if c not in self.reader.columns]

    def student_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the student's forward is given: the batch without what only teachers take."""
        extra = set(self.teacher_columns)
        return {**{k: v for k, v in batch.items() if k not in extra}, **self.reader.asks}

    def count(self, batches: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """Positions of each region that the recipe uses, over the batches of one step."""
        if not self._regions or not batches:
            return None
        return count_positions(batches, self._regions, self.token_level)

    def ask(self, name: str, batch: Mapping[str, Any]) -> tuple[Captured, Outputs]:
        """Run a teacher on a batch.

        Returns:
            What its taps saw, and the outputs that pairs name, samples on the first axis.
        """
        reader = self.readers[name]
        captured, answer = self.distiller.ask(name, **reader.inputs(batch), **reader.asks)
        return captured, reader.gather(answer, captured) if reader.names else {}

    def pair_taps(self, name: str) -> Taps:
        """The taps of a teacher that pairs compare themselves."""
        pairs = [pair for pair in self.distiller.pairs_of(name) if not pair.is_output]
        specs = [tap for pair in pairs for tap in members(pair.teacher)]
        return self.distiller.teachers[name].taps(specs)

    def terms(
        self,
        seen: Captured,
        output: Any,
        batch: Mapping[str, Any],
        totals: Tensor | None,
        progress: Progress,
        inputs_of: Mapping[str, Mapping[str, Any]] | None = None,
        positions: Mapping[str, Any] | None = None,
    ) -> dict[str, Term]:
        """Run the teachers on a batch, or look up what they say of it, and compute every term.

        Args:
            seen: What the student's taps saw.
            output: What the student's forward returned.
            batch: The inputs, labels among them.
            totals: From :meth:`count`, over all batches of the step and averaged over processes;
                terms are divided by these instead of the batch's own.
            progress: Where training stands.
            inputs_of: Inputs of single teachers, where they are not the batch's.
            positions: Of the batch's texts among those remembered of each teacher, where known.
        """
        asked = {name: (inputs_of or {}).get(name, batch) for name in self.distiller.teachers}
        taught = {
            name: self.remembered[name].answer(inputs, (positions or {}).get(name))
            if name in self.remembered
            else self.ask(name, inputs)
            for name, inputs in asked.items()
        }
        masks = {name: token_mask(inputs) for name, inputs in asked.items()}
        context = self._context(seen, output, taught, batch, totals, masks)
        captured = {name: found for name, (found, _) in taught.items()}
        return self.distiller.terms(seen, captured, context, progress)

    def is_exact(self, pair: Pair) -> bool:
        """Whether a pair is divided by the positions of all batches of a step."""
        return self.distiller.region_of(pair) is not None

    def _context(
        self,
        seen: Captured,
        output: Any,
        taught: Mapping[str, tuple[Captured, Outputs]],
        batch: Mapping[str, Any],
        totals: Tensor | None = None,
        masks: Mapping[str, Tensor | None] | None = None,
        made_up: bool = False,
    ) -> Context:
        mask = token_mask(batch)
        student = self.reader.read(output, seen, mask)
        teachers = {
            name: lay_out(outputs, (masks or {}).get(name, mask))
            for name, (_, outputs) in taught.items()
        }
        targets = targets_of(batch, student)
        if made_up:
            targets = {
                name: torch.zeros(len(value), dtype=torch.long, device=value.device)
                for name, value in student.items()
                if isinstance(value, Tensor)
            }
            batch = {**batch, "labels": torch.zeros_like(batch["input_ids"])}
        weights = position_weights(batch, self._regions, self.token_level)
        regions = {
            name: Region(weight, None if totals is None else totals[index])
            for index, (name, weight) in enumerate(weights.items())
        }
        return Context(student, teachers, regions, targets)

    # -- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the student."""
        state = {k: v.detach().cpu() for k, v in self.distiller.state_dict().items()}
        return {"distiller": state, "teachers": dict(self.fingerprints)}

    def load_state_dict(self, state: Mapping[str, Any], source: str) -> None:
        """Restore it.

        Raises:
            CheckpointError: If it belongs to another recipe or to other teachers.
        """
        whole = state if isinstance(state, Mapping) else {}
        parts = [whole.get(key) for key in ("teachers", "distiller")]
        if not all(isinstance(part, Mapping) for part in parts):
            raise CheckpointError(
                f"{source} is not what a distillation run writes. Resume from a checkpoint that "
                "one wrote."
            )
        for name, was in state["teachers"].items():
            if self.fingerprints.get(name) != was:
                raise CheckpointError(
                    f"{source} was written with another teacher {name!r}: its weights differ from "
                    "those given now. Give that teacher, or start a new run."
                )
        own, saved = self.distiller.state_dict(), state["distiller"]
        if {k: tuple(v.shape) for k, v in own.items()} != {
            k: tuple(v.shape) for k, v in saved.items()
        }:
            raise CheckpointError(
                f"{source} holds the adapters of another recipe: {sorted(saved) or 'none'}, this "
                f"recipe has {sorted(own) or 'none'}. Resume with the recipe it was begun with."
            )
        self.distiller.load_state_dict(saved)

    def restore(self, folder: str | Path) -> None:
        """Restore from a checkpoint folder.

        Raises:
            CheckpointError: If the file is missing or damaged, or belongs to something else.
        """
        path = Path(folder) / STATE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} was not written by a distillation run ({STATE_FILE} is missing), so its "
                "adapters are lost. Resume from a checkpoint that this run wrote, or start anew "
                "with that folder as the student."
            )
        self.load_state_dict(read_checkpoint(path), str(path))


def _outputs_of(pairs: Sequence[Pair], side: str) -> set[str]:
    specs = [getattr(pair, side) for pair in pairs if pair.is_output]
    return {output_name(tap) for spec in specs for tap in members(spec)}


def _token_level(student: nn.Module, example: Mapping[str, Tensor]) -> bool:
    """Whether the student's head gives a row a token."""
    with torch.no_grad(), evaluating(student):
        output = student(**example)
    if not isinstance(output, Mapping):
        raise ConfigError(
            f"{type(student).__name__} returns {type(output).__name__}; expected a model output "
            "with names. Leave config.return_dict as it is by default."
        )
    logits = output.get("logits", output.get("prediction_logits"))
    return isinstance(logits, Tensor) and logits.ndim == 3


def _check_fit(
    student: nn.Module,
    teacher: nn.Module,
    pairs: Sequence[Pair],
    tokenizer: Any,
    teacher_tokenizer: Any,
) -> None:
    ours, theirs = getattr(student, "config", None), getattr(teacher, "config", None)
    if ours is None or theirs is None:
        raise ConfigError(
            "Student and teacher must be models of transformers, with a config; got "
            f"{type(student).__name__} and {type(teacher).__name__}."
        )
    if teacher_tokenizer is None:
        path = getattr(theirs, "_name_or_path", "") or ""
        teacher_tokenizer = load_tokenizer_of(path) if Path(path).is_dir() and path else None
    check_vocabulary(ours, theirs, tokenizer, teacher_tokenizer)
    if "logits" in _outputs_of(pairs, "student"):
        # A head over the vocabulary has an output layer of words; its config's labels say nothing.
        over_words = [_words(model) is not None for model in (student, teacher)]
        (check_vocabulary_logits if all(over_words) else check_labels)(ours, theirs)


def _words(model: nn.Module) -> nn.Module | None:
    output = getattr(model, "get_output_embeddings", None)
    return None if output is None else output()


def _warn_of_dropout(student: nn.Module) -> None:
    config: Any = student.config
    names = ("attention_probs_dropout_prob", "attention_dropout")
    rate = next((getattr(config, name) for name in names if hasattr(config, name)), 0.0)
    if rate:
        logger.warning(
            "The student's attention maps are compared as it returns them, after a dropout of %g: "
            "a key that was dropped looks like one it overlooked. Set %s=0, or compare "
            "outputs.attention_scores.",
            rate,
            next(name for name in names if hasattr(config, name)),
        )
