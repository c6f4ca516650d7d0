"""Classifiers whose teacher is remembered: whole runs, compared with runs that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from saved_runs import assert_equal, curves

import taskdistill.tasks.classification  # noqa: F401
from taskdistill.core.errors import CacheError, ConfigError
from taskdistill.tasks.classification.models import CifarResNet
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

SMALL = dict(type="CifarResNet", depth=8, widths=(4, 8, 8), num_classes=3)
WIDE = dict(SMALL, widths=(8, 8, 16))
KD = dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, name="kd")
HINT = dict(student="layer2", loss="Hint", name="hint")
TOP = dict(student="outputs.logits", loss="TopKKLDivergence", k=2, temperature=4.0, name="top")


@HOOKS.register_module(force=True)
class StopAfterHook(Hook):
    """Raise after so many steps, as a power cut would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.steps:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def make(tiny_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Configs of one distillation, two epochs of three batches."""
    torch.manual_seed(9)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save({"state_dict": CifarResNet(8, widths=(8, 8, 16), num_classes=3).state_dict()}, path)

    def config(cache: dict[str, Any] | None, *pairs: Any, **entries: Any) -> dict[str, Any]:
        distill = dict(
            teacher=dict(network=WIDE, checkpoint=str(path), precision="fp32"),
            pairs=[dict(pair) for pair in pairs or (KD, HINT)],
            measure_teacher=False,
            **({} if cache is None else {"cache": cache}),
        )
        return tiny_data.config(
            tiny_data.model(network=SMALL),
            task="classification",
            distill=distill,
            custom_hooks=entries.pop("custom_hooks", []),
            **entries,
        )

    return config


def saved(work_dir: Path, epoch: int = 2) -> dict[str, Any]:
    return read_mm_checkpoint(str(work_dir / f"epoch_{epoch}.pth"))


def same_runs(ours: Path, theirs: Path) -> None:
    a, b = saved(ours), saved(theirs)
    assert_equal(a["state_dict"], b["state_dict"])
    assert curves(a) == curves(b)


def test_a_run_on_kept_answers_is_the_run_that_asks_bit_for_bit(
    tiny_data: Any, make: Any, tmp_path: Path
) -> None:
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
    tiny_data.train(make(None), tmp_path / "asked")
    runner = tiny_data.train(make(cache), tmp_path / "kept")
    same_runs(tmp_path / "asked", tmp_path / "kept")
    assert "cache" not in runner.model.state_dict() and runner.model.remembered is not None
    # Complete, the teacher is not asked at all.
    again = tiny_data.runner(make(cache), tmp_path / "again")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the teacher was asked in training")

    @HOOKS.register_module(force=True)
    class Deaf(Hook):
        def before_train_epoch(self, runner: Any) -> None:
            runner.model.ask_teacher = refuse

    again.register_hook(Deaf())
    again.train()
    same_runs(tmp_path / "asked", tmp_path / "again")


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_half_the_bytes_change_the_losses_within_their_rounding(
    tiny_data: Any, make: Any, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype=dtype)
    tiny_data.train(make(None), tmp_path / "asked")
    tiny_data.train(make(cache), tmp_path / "kept")
    ours, theirs = curves(saved(tmp_path / "kept")), curves(saved(tmp_path / "asked"))
    assert ours["kd_kd_raw"] != theirs["kd_kd_raw"]
    for name in ("loss", "kd_kd_raw", "kd_hint_raw"):
        assert ours[name][0] == pytest.approx(theirs[name][0], rel=tolerance), name
        # From then on the students are not quite the same.
        assert ours[name] == pytest.approx(theirs[name], rel=10 * tolerance), name


def test_kept_classes_train_as_the_teacher_asked_for_them(
    tiny_data: Any, make: Any, tmp_path: Path
) -> None:
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
    tiny_data.train(make(None, TOP), tmp_path / "asked")
    runner = tiny_data.train(make(cache, TOP), tmp_path / "kept")
    same_runs(tmp_path / "asked", tmp_path / "kept")
    store = runner.model.remembered.stores["teacher"]
    assert {field.dtype for field in store.cache.spec.fields} == {"float32", "int16"}
    # Two pairs that read other classes of it: the logits are kept whole.
    whole = dict(cache, path=str(tmp_path / "whole"))
    both = make(whole, TOP, dict(TOP, k=1, name="one"))
    runner = tiny_data.train(both, tmp_path / "both")
    assert {f.dtype for f in runner.model.remembered.stores["teacher"].cache.spec.fields} == {
        "float32"
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_take_the_views_in_turn_and_find_what_the_teacher_says_of_each(
    tiny_data: Any, make: Any, tmp_path: Path, workers: int
) -> None:
    """The answers of every step are compared with live ones on the very images."""
    cache = dict(path=str(tmp_path / "cache"), views=2, seed=11, dtype="fp32")
    config = make(cache, train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=3, val_interval=9))
    config["train_dataloader"]["num_workers"] = workers
    seen: list[Any] = []

    @HOOKS.register_module(force=True)
    class CompareHook(Hook):
        priority = "VERY_LOW"

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            model = runner.model
            images = model.data_preprocessor(data_batch, True)["inputs"]
            positions = model.remembered.positions
            kept, answer = model.remembered.answer("teacher", images)
            asked, output = model.ask_teacher("teacher", images, None)
            assert torch.equal(answer["logits"], output["logits"])
            assert torch.equal(kept.tensors("layer2")[0], asked.tensors("layer2")[0])
            seen.append((runner.epoch, positions, images))

    config["custom_hooks"] = [dict(type="CompareHook")]
    tiny_data.train(config, tmp_path / "run")
    epochs = [torch.cat([p for e, p, _ in seen if e == epoch]) for epoch in range(3)]
    for epoch, positions in enumerate(epochs):
        # A pass shows each sample once, in the pass's own view.
        assert sorted(positions.tolist()) == [epoch % 2 * 24 + i for i in range(24)]
        assert positions.tolist() != sorted(positions.tolist())
    pictures = [torch.cat([i for e, _, i in seen if e == epoch]) for epoch in range(3)]
    sorted_ = [p[e.argsort()] for p, e in zip(pictures, epochs, strict=True)]
    assert torch.equal(sorted_[0], sorted_[2]) and not torch.equal(sorted_[0], sorted_[1])


def test_a_run_stopped_in_an_epoch_resumes_with_its_cache_with_and_without(
    tiny_data: Any, make: Any, tmp_path: Path
) -> None:
    cache = dict(path=str(tmp_path / "cache"), views="epochs", seed=3, dtype="fp32")
    tiny_data.train(make(None), tmp_path / "whole")
    for name, before, after in (
        ("kept", cache, cache),
        ("kept, then asked", cache, None),
        ("asked, then kept", None, cache),
    ):
        work_dir = tmp_path / name
        with pytest.raises(KeyboardInterrupt):
            tiny_data.train(
                make(before, custom_hooks=[dict(type="StopAfterHook", steps=5)]), work_dir
            )
        resumed = make(after, resume=True, load_from=str(work_dir / "epoch_1.pth"))
        tiny_data.train(resumed, work_dir)
        assert_equal(saved(tmp_path / "whole")["state_dict"], saved(work_dir)["state_dict"], name)


def test_mixtures_of_a_batch_are_refused_and_nothing_is_written(
    tiny_data: Any, make: Any, tmp_path: Path
) -> None:
    config = make(dict(path=str(tmp_path / "cache"), views=1))
    config["model"]["data_preprocessor"]["mixing"] = dict(type="MixUp")
    with pytest.raises(ConfigError, match="mixing .MixUp. makes pictures of whole batches"):
        tiny_data.train(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_augmented_data_need_a_number_of_views(tiny_data: Any, make: Any, tmp_path: Path) -> None:
    config = make(dict(path=str(tmp_path / "cache")))
    with pytest.raises(ConfigError, match="at random.*views=1 .*views='epochs' .*2 passes"):
        tiny_data.train(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()
    config["train_dataloader"]["dataset"]["transforms"] = []
    runner = tiny_data.train(config, tmp_path / "run")
    assert runner.model.remembered.stores["teacher"].cache.spec.samples == 24


def test_answers_that_need_the_labels_or_other_orders_are_refused(
    tiny_data: Any, make: Any, tmp_path: Path
) -> None:
    cache = dict(path=str(tmp_path / "cache"), views=1)
    pair = dict(student="outputs.input_gradient", loss="GradientAttentionTransfer")
    with pytest.raises(ConfigError, match="teacher 'teacher' cannot be kept.*input_gradient"):
        tiny_data.train(make(cache, pair), tmp_path / "run")
    config = make(cache, KD)
    config["model"] = tiny_data.model(
        "MutualClassifier", network=SMALL, order="different", update="sequential"
    )
    with pytest.raises(ConfigError, match="are a PeerOrders"):
        tiny_data.train(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()


def test_another_teacher_or_pipeline_is_refused_with_what_differs(
    tiny_data: Any, make: Any, tmp_path: Path
) -> None:
    cache = dict(path=str(tmp_path / "cache"), views=1)
    tiny_data.train(make(cache), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.*")}
    other = make(cache)
    torch.manual_seed(1)
    network = CifarResNet(8, widths=(8, 8, 16), num_classes=3)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "other.pth")
    other["distill"]["teacher"]["checkpoint"] = str(tmp_path / "other.pth")
    with pytest.raises(CacheError, match=r"identity\.teacher\.sha256: then \w+, now \w+"):
        tiny_data.train(other, tmp_path / "run")
    crop = make(cache)
    crop["train_dataloader"]["dataset"]["transforms"] = [dict(type="RandomHorizontalFlip", p=0.9)]
    with pytest.raises(CacheError, match=r"data\.config\.transforms\.0\.p: then absent, now 0\.9"):
        tiny_data.train(crop, tmp_path / "run")
    darker = make(cache)
    darker["model"]["data_preprocessor"]["std"] = [60.0, 50.0, 41.0]
    with pytest.raises(CacheError, match=r"data_preprocessor\.std: then .*40\.0.*now .*41\.0"):
        tiny_data.train(darker, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.*")}


def test_a_changed_picture_ends_training_before_the_student_learns_from_it(
    tiny_data: Any, make: Any, tmp_path: Path
) -> None:
    @HOOKS.register_module(force=True)
    class DarkenHook(Hook):
        """Changes the pictures where no config shows it."""

        def before_train_epoch(self, runner: Any) -> None:
            if runner.epoch == 1:
                runner.train_dataloader.dataset.dataset.images[5] //= 2

    config = make(
        dict(path=str(tmp_path / "cache"), views=1), custom_hooks=[dict(type="DarkenHook")]
    )
    with pytest.raises(CacheError, match="Not what teacher 'teacher' saw: sample 5 in view 0"):
        tiny_data.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "epoch_1.pth").is_file()
