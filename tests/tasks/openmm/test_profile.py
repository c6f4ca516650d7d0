from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("mmdet")

from mmengine.config import Config
from torch import nn

from taskdistill.core.errors import CheckpointError, ConfigError, ShapeError
from taskdistill.tasks.openmm.profile import (
    format_count,
    input_shape,
    main,
    measure,
    prepare_subject,
)

ROOT = Path(__file__).resolve().parents[3]
GENERATOR = dict(type="ResnetGenerator", width=4, blocks=1)


def gan_config(folder: Path, generator: dict = GENERATOR, **entries: object) -> str:
    model = dict(type="ImageTranslator", generator=generator)
    loader = dict(dataset=dict(type="UnalignedImages", crop_size=16))
    entries = dict(
        task="gan", default_scope="mmengine", model=model, val_dataloader=loader, **entries
    )
    path = folder / f"gan_{len(list(folder.iterdir()))}.py"
    path.write_text(Config(entries).pretty_text)
    return str(path)


def test_a_generator_alone(tmp_path):
    """By hand: width 4, one block, 16 x 16; transposed convolutions on their output."""
    found = measure([prepare_subject(gan_config(tmp_path))], latency=False)[0]
    stem = 16 * 16 * 4 * 3 * 49
    down = 8 * 8 * 8 * 4 * 9 + 4 * 4 * 16 * 8 * 9
    block = 2 * 4 * 4 * 16 * 16 * 9
    up = 8 * 8 * 8 * 16 * 9 + 16 * 16 * 4 * 8 * 9
    assert found.macs == stem + down + block + up + 16 * 16 * 3 * 4 * 49
    assert (found.network, found.task, found.shape) == ("ResnetGenerator", "gan", (3, 16, 16))
    assert found.shape_source == "crop_size of val_dataloader"
    # No discriminator is counted, nor built.
    assert [part.name for part in found.parts] == [f"model.{i}" for i in (1, 4, 7, 10, 11, 14, 18)]
    assert found.parts[3].macs == block
    assert found.latency_ms is None
    assert found.peak_bytes > 16 * 16 * 4 * 4


def test_a_detector_part_by_part(tiny):
    config = tiny.write(tiny.config(distill=tiny.distill()))
    found = measure([prepare_subject(config)], rounds=1)[0]
    model = tiny.build(tiny.model())
    assert found.network == "GFL"
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert [part.name for part in found.parts] == ["backbone", "neck", "bbox_head"]
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert sum(part.macs for part in found.parts) == found.macs
    assert all(part.macs for part in found.parts)
    assert found.shape == (3, 64, 64)
    assert found.latency_ms is not None and found.latency_ms > 0


def test_frozen_weights_are_told_apart(tiny):
    model = tiny.model()
    model["backbone"]["frozen_stages"] = 1
    found = measure([prepare_subject(tiny.write(tiny.config(model)))], latency=False)[0]
    backbone = found.parts[0]
    assert 0 < backbone.trainable < backbone.parameters
    assert found.parameters - found.trainable == backbone.parameters - backbone.trainable


def test_heads_that_are_called_past_the_hooks():
    """mmseg calls its heads' forward directly, and leaves the auxiliary one out."""
    pytest.importorskip("mmseg")
    config = ROOT / "configs/segmentation/demo/student.py"
    found = measure([prepare_subject(str(config))], latency=False)[0]
    macs = {part.name: part.macs for part in found.parts}
    assert set(macs) == {"backbone", "decode_head", "auxiliary_head"}
    assert macs["decode_head"] > 0 and macs["auxiliary_head"] == 0
    assert sum(macs.values()) == found.macs


def test_a_batch_costs_each_image_the_same(tmp_path):
    config = gan_config(tmp_path)
    one, four = measure(
        [prepare_subject(config, shape=(64, 64), batch_size=n) for n in (1, 4)],
        latency=False,
    )
    assert one.macs == four.macs
    assert [part.macs for part in one.parts] == [part.macs for part in four.parts]
    assert 3.5 * one.peak_bytes < four.peak_bytes < 4.5 * one.peak_bytes


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (dict(data_preprocessor=dict(size=(32, 64))), (32, 64)),
        (dict(data_preprocessor=dict(size=(32, 64), test_cfg=dict(size=(8, 16)))), (8, 16)),
        # Width before height.
        (dict(test_pipeline=[dict(type="Resize", scale=(1333, 800))]), (800, 1333)),
        (
            dict(
                data_preprocessor=dict(pad_size_divisor=32),
                val_dataloader=dict(
                    dataset=dict(pipeline=[dict(type="mmdet.Resize", scale=(1333, 800))])
                ),
            ),
            (800, 1344),
        ),
        ({}, (224, 224)),
        (dict(task="gan"), (256, 256)),
        (dict(task="gan", val_dataloader=dict(dataset=dict(crop_size=(32, 64)))), (32, 64)),
        (dict(task="gan", test_dataloader=dict(dataset=dict(size=48))), (48, 48)),
    ],
)
def test_the_shape_that_a_config_is_made_for(entries, expected):
    cfg = Config(dict(model=dict(generator=dict(in_channels=3)), **entries))
    assert input_shape(cfg)[0] == (3, *expected)


def test_a_given_shape(tmp_path):
    grey = gan_config(tmp_path, {**GENERATOR, "in_channels": 1})
    assert prepare_subject(grey, shape=(20, 24)).shape == (1, 20, 24)
    subject = prepare_subject(grey, shape=(1, 20, 24))
    assert (subject.shape, subject.shape_source) == ((1, 20, 24), "given")


@pytest.mark.parametrize("shape", [(18, 16), (2, 16, 16)])
def test_a_shape_that_the_network_does_not_take(tmp_path, shape):
    with pytest.raises(ShapeError, match=r"(?s)18x16|2x16x16.*--shape"):
        prepare_subject(gan_config(tmp_path), shape=shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shape=(16,)), "H W or C H W"),
        (dict(shape=(0, 16)), "positive"),
        (dict(batch_size=0), "at least one image"),
    ],
)
def test_numbers_that_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare_subject(gan_config(tmp_path), **options)


def test_models_that_cannot_be_built(tmp_path, tiny):
    with pytest.raises(ConfigError, match="NoGenerator"):
        prepare_subject(gan_config(tmp_path, dict(type="NoGenerator")))
    model = tiny.model()
    model["backbone"]["depth"] = 17
    with pytest.raises(ConfigError, match="cannot be built"):
        prepare_subject(tiny.write(tiny.config(model)))


def test_checkpoints_prove_to_fit(tmp_path, tiny):
    teacher = tiny.teacher()
    prepare_subject(teacher["config"], teacher["checkpoint"])
    with pytest.raises(CheckpointError, match="does not fit"):
        prepare_subject(tiny.write(tiny.config()), teacher["checkpoint"])
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit ResnetGenerator"):
        prepare_subject(gan_config(tmp_path), str(tmp_path / "other.pth"))


def test_the_command_compares_and_writes_figures(tmp_path, capsys):
    wide, thin = gan_config(tmp_path, {**GENERATOR, "width": 8}), gan_config(tmp_path)
    out = tmp_path / "figures.json"
    command = [wide, "--compare", thin, "--rounds", "2", "--json", str(out)]
    main(command)
    printed = capsys.readouterr().out
    assert "A: ResnetGenerator" in printed and "model.10" in printed
    assert "transposed convolutions on output elements" in printed
    figures = json.loads(out.read_text())
    first, second = figures["networks"]
    assert first["macs"] > 2.5 * second["macs"]
    assert f"{first['macs'] / second['macs']:.2f}x" in printed
    assert first["latency_ms"] > 0 and "output elements" in figures["mac_convention"]
    with pytest.raises(ConfigError, match="exists"):
        main(command)
    main([*command, "--force", "--no-latency"])
    assert json.loads(out.read_text())["networks"][0]["latency_ms"] is None


def test_the_script_ends_in_one_message(tmp_path):
    command = [sys.executable, ROOT / "tools/profile.py", tmp_path / "absent.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "ConfigError" in done.stderr and "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.00 k"), (11_378_179, "11.38 M")]
)
def test_counts_as_text(number, text):
    assert format_count(number) == text
