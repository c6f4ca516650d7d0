"""The saved student loads and answers in plain mmseg as it does here, however it is asked."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from taskdistill.tasks.openmm import cli
from taskdistill.tasks.openmm.teacher import read_mm_checkpoint

# Whole images, a sliding window, and test-time augmentation, as options of tools/test.py.
WAYS = {
    "whole": [],
    "slide": [
        "model.test_cfg.mode=slide",
        "model.test_cfg.crop_size=(48,48)",
        "model.test_cfg.stride=(32,32)",
    ],
    "tta": [],
}

# A machine that has mmseg and no taskdistill: loads strictly what the files tell, and tests as
# mmseg's own tools/test.py does.
PLAIN = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "taskdistill":
            raise ImportError("this process must not need " + name)

sys.meta_path.insert(0, Blocked())
import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

job = json.load(open(sys.argv[1]))
found = {"raw": {}, "figures": {}}
register_all_modules()
inputs = torch.load(job["inputs"])
for path in job["checkpoints"]:
    checkpoint = torch.load(path, weights_only=False)
    cfg = Config.fromstring(checkpoint["meta"]["cfg"], ".py")
    assert cfg.model.type == "EncoderDecoder" and "distill" not in cfg
    model = MODELS.build(cfg.model)
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    with torch.no_grad():
        found["raw"][path] = model.eval()(inputs, mode="tensor")
for way in job["ways"]:
    cfg = Config.fromfile(job["config"])
    cfg.load_from, cfg.work_dir = job["checkpoints"][-1], job["folder"] + "/" + way
    cfg.experiment_name = way
    if way == "slide":
        cfg.model.test_cfg = dict(mode="slide", crop_size=(48, 48), stride=(32, 32))
    if way == "tta":
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    out = dict(type="DumpResults", out_file_path=job["folder"] + "/" + way + ".pkl")
    cfg.test_evaluator = [cfg.test_evaluator, out]
    figures = Runner.from_cfg(cfg).test()
    found["figures"][way] = {name: float(value) for name, value in figures.items()}
model = init_model(job["config"], job["checkpoints"][-1], device="cpu")
assert model.dataset_meta["classes"] == ("ground", "red", "green", "blue")
found["single"] = inference_model(model, job["picture"]).pred_sem_seg.data[0]
assert not any(name.split(".")[0] == "taskdistill" for name in sys.modules)
torch.save(found, job["folder"] + "/found.pt")
"""


@pytest.fixture(scope="module")
def trained(seg, tmp_path_factory):
    """Folder and config of a run with all structured terms, averaged weights among its files."""
    folder = tmp_path_factory.mktemp("inference")
    config = seg.config(distill=seg.distill())
    config["custom_hooks"].append(dict(type="EMAHook", momentum=0.5))
    config["optim_wrapper"]["optimizer"]["lr"] = 0.1  # to answer with more than one class
    path = seg.write(config)
    cli.train([path, "--work-dir", str(folder / "run"), "--cfg-options", "experiment_name=infer"])
    return folder, path


@pytest.fixture(scope="module")
def ours(seg, trained):
    """Figures and predictions of every way, with our tools."""
    folder, path = trained
    found = {}
    for way, options in WAYS.items():
        out = folder / "ours" / f"{way}.pkl"
        arguments = [path, str(folder / "run" / "epoch_2.pth"), "--out", str(out)]
        arguments += ["--work-dir", str(folder / "ours" / way)]
        arguments += ["--tta"] if way == "tta" else []
        cli.test([*arguments, "--cfg-options", f"experiment_name=ours_{way}", *options])
        figures = json.loads(next((folder / "ours" / way).rglob("*.json")).read_text())
        found[way] = figures, predictions(out)
    return found


@pytest.fixture(scope="module")
def inputs(seg):
    return seg.batch(seg.build(seg.model()), "0", "1", split="val")[0]


@pytest.fixture(scope="module")
def theirs(seg, trained, inputs):
    """What a process without taskdistill found."""
    folder, _ = trained
    (folder / "theirs").mkdir()
    torch.save(inputs, folder / "inputs.pt")
    job = dict(
        ways=list(WAYS),
        config=str(folder / "run" / "student_config.py"),
        checkpoints=[str(folder / "run" / f"epoch_{n}.pth") for n in (1, 2)],
        inputs=str(folder / "inputs.pt"),
        picture=str(seg.data / "images" / "val" / "0.png"),
        folder=str(folder / "theirs"),
    )
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "plain.py").write_text(PLAIN)
    done = subprocess.run(
        [sys.executable, str(folder / "plain.py"), str(folder / "job.json")],
        env=seg.env,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(folder / "theirs" / "found.pt")
    found["maps"] = {way: predictions(folder / "theirs" / f"{way}.pkl") for way in WAYS}
    return found


def predictions(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By image: the class of every pixel, and the logits (of one view, where there were more)."""
    found = {}
    for sample in pickle.loads(path.read_bytes()):
        classes, logits = (np.asarray(sample[k]["data"]) for k in ("pred_sem_seg", "seg_logits"))
        found[Path(sample["img_path"]).name] = classes.reshape(64, 64), logits
    return found


def test_every_checkpoint_loads_strictly_into_the_plain_model_elsewhere(seg, theirs, inputs):
    plain = seg.build(seg.model()).eval()
    assert len(theirs["raw"]) == 2
    for path, raw in theirs["raw"].items():
        plain.load_state_dict(read_mm_checkpoint(path)["state_dict"], strict=True)
        with torch.no_grad():
            assert torch.equal(raw, plain(inputs, mode="tensor"))


@pytest.mark.parametrize("way", WAYS)
def test_the_saved_student_answers_in_plain_mmseg_as_here(ours, theirs, way):
    (figures, maps), their_figures = ours[way], theirs["figures"][way]
    kinds = ("mIoU", "aAcc", "mAcc")
    # Theirs come rounded to two decimals, as single-precision numbers.
    assert [figures[k] for k in kinds] == pytest.approx([their_figures[k] for k in kinds], abs=1e-4)
    assert 0 < figures["mIoU"] < 100
    assert set(maps) == set(theirs["maps"][way]) == {f"{i}.png" for i in range(6)}
    for name, (classes, logits) in maps.items():
        their_classes, their_logits = theirs["maps"][way][name]
        assert np.array_equal(classes, their_classes)
        assert np.array_equal(logits, their_logits)


def test_the_ways_are_not_one_and_the_same(ours):
    classes = {way: np.stack([c for c, _ in found.values()]) for way, (_, found) in ours.items()}
    assert len(np.unique(classes["whole"])) > 1
    for way in ("slide", "tta"):
        assert (classes[way] != classes["whole"]).any(), way


def test_a_single_picture_by_mmsegs_own_call(ours, theirs):
    classes, _ = ours["whole"][1]["0.png"]
    assert np.array_equal(theirs["single"].numpy(), classes)
