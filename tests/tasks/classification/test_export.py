from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from taskdistill.core.errors import CheckpointError, ConfigError, DistillError, ShapeError
from taskdistill.core.online import BeYourOwnTeacher
from taskdistill.tasks.classification.export import (
    ExitsForExport,
    build_classifier,
    export_onnx,
    export_program,
    main,
    with_exits,
)
from taskdistill.tasks.classification.models import CifarResNet
from taskdistill.tasks.classification.mutual import MutualClassifier  # noqa: F401 - registers it
from taskdistill.tasks.classification.one import OneClassifier  # noqa: F401 - registers it
from taskdistill.tasks.openmm import load_config

NETWORK = dict(type="CifarResNet", depth=8, num_classes=3)
KINDS = {
    "ImageClassifier": {},
    "MutualClassifier": dict(peers=2),
    "OneClassifier": dict(at="layer3", size=(3, 8, 8)),
    "SelfTaughtClassifier": dict(exits=["layer1", "layer2"], features="layer3", size=(3, 8, 8)),
}

BOTH = pytest.mark.parametrize(
    "exits", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "exits"]
)


class Made:
    """A config, and a checkpoint as training writes it."""

    def __init__(self, tiny_data, folder: Path, kind: str, averaged: bool = False) -> None:
        settings = tiny_data.model(kind, network=NETWORK, **KINDS[kind])
        entries = tiny_data.config(settings, task="classification")
        self.model = tiny_data.build(settings).eval()
        self.config, self.checkpoint = str(folder / "config.py"), str(folder / "epoch_1.pth")
        Path(self.config).write_text(Config(entries).pretty_text)
        content = dict(meta={}, state_dict=self.model.state_dict())
        if partners := self.model.partner_state():
            content["classification"] = {"version": 1, "partners": partners}
            if averaged:
                other = {name: torch.zeros_like(value) for name, value in partners.items()}
                content["classification"].update(partners=other, averaged=partners)
        torch.save(content, self.checkpoint)

    def run(self, *options: str) -> None:
        main([self.config, self.checkpoint, *options])


def images(batch: int = 2, side: int = 8) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def plain(path: Path) -> nn.Module:
    net = CifarResNet(depth=8, num_classes=3)
    net.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return net.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_is_the_plain_networks(tiny_data, tmp_path, kind):
    made = Made(tiny_data, tmp_path, kind)
    made.run("--out", str(tmp_path / "deep" / "net.pth"))
    torch.testing.assert_close(
        plain(tmp_path / "deep" / "net.pth")(images()), made.model.network(images())
    )
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["net.pth"]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("kind", ["MutualClassifier", "OneClassifier"])
def test_another_peer(tiny_data, tmp_path, kind, averaged):
    made = Made(tiny_data, tmp_path, kind, averaged)
    made.run("--out", str(tmp_path / "net.pth"), "--peer", "2")
    found = plain(tmp_path / "net.pth")(images())
    if kind == "MutualClassifier":
        wanted = made.model.peers[1](images())
    else:
        wanted = made.model.branches(made.model.network, images()).logits[2]
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, made.model.network(images()))
    for number in (3, -1):
        with pytest.raises(ConfigError, match=f"no (peer|branch) {number}; there are 0"):
            made.run("--out", str(tmp_path / "x.pth"), "--peer", str(number))


def test_with_the_exits(tiny_data, tmp_path):
    made = Made(tiny_data, tmp_path, "SelfTaughtClassifier")
    made.run("--out", str(tmp_path / "net.pth"), "--exits")
    whole = BeYourOwnTeacher(
        CifarResNet(depth=8, num_classes=3), ["layer1", "layer2"], "layer3", example=(3, 8, 8)
    )
    whole.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True), strict=True)
    found = whole.eval()(images()).logits
    torch.testing.assert_close(found, made.model.exits(made.model.network, images()).logits)


def test_exits_for_export_are_the_exits(tiny_data):
    settings = tiny_data.model(
        "SelfTaughtClassifier", network=NETWORK, **KINDS["SelfTaughtClassifier"]
    )
    model = tiny_data.build(settings).eval()
    found = ExitsForExport(with_exits(model))(images())
    torch.testing.assert_close(list(found), model.exits(model.network, images()).logits)


@BOTH
def test_a_program_runs_without_taskdistill(tiny_data, tmp_path, exits, capsys):
    made = Made(tiny_data, tmp_path, "SelfTaughtClassifier")
    made.run("--program", str(tmp_path / "net.pt2"), *(["--exits"] if exits else []))
    shown = capsys.readouterr().out
    assert "the batch may vary; equal to torch" in shown
    assert "minus [110.0, 100.0, 90.0], divided by [60.0, 50.0, 40.0]" in shown
    logits = made.model.exits(made.model.network, images(3)).logits
    expected = [each.detach() for each in (logits if exits else logits[-1:])]
    torch.save(dict(images=images(3), expected=expected), tmp_path / "pair.pt")
    script = """
        import sys
        for name in ("taskdistill", "mmengine", "torchvision"):
            sys.modules[name] = None  # importing it fails
        import torch
        pair = torch.load("pair.pt", weights_only=True)
        found = torch.export.load("net.pt2").module()(pair["images"])
        found = (found,) if isinstance(found, torch.Tensor) else found
        gaps = [float((a - b).abs().max()) for a, b in zip(found, pair["expected"], strict=True)]
        print(max(gaps))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 1e-4


@BOTH
def test_onnx_computes_the_same_for_any_batch(tiny_data, tmp_path, exits):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    made = Made(tiny_data, tmp_path, "SelfTaughtClassifier")
    made.run("--onnx", str(tmp_path / "net.onnx"), *(["--exits"] if exits else []))
    session = runtime.InferenceSession(
        str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
    )
    names = ["exit0", "exit1", "logits"] if exits else ["logits"]
    assert [output.name for output in session.get_outputs()] == names
    for batch in (1, 5):
        found = session.run(names, {"images": images(batch).numpy()})
        wanted = made.model.exits(made.model.network, images(batch)).logits[-len(names) :]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, atol=1e-4, rtol=1e-4)


def test_nothing_is_written_over_silently(tiny_data, tmp_path):
    made = Made(tiny_data, tmp_path, "ImageClassifier")
    out = tmp_path / "net.pth"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists; choose another name, or add --force"):
        made.run("--out", str(out))
    assert out.read_text() == "mine"
    made.run("--out", str(out), "--force")
    plain(out)
    with pytest.raises(ConfigError, match="the checkpoint itself"):
        made.run("--out", made.checkpoint, "--force")
    with pytest.raises(ConfigError, match="name the same file"):
        made.run("--out", str(tmp_path / "a"), "--onnx", str(tmp_path / "a"))
    with pytest.raises(ConfigError, match="is a folder"):
        made.run("--out", str(tmp_path))
    with pytest.raises(ConfigError, match="Nothing to write"):
        made.run()


def test_what_cannot_be_exported(tiny_data, tmp_path):
    made = Made(tiny_data, tmp_path, "ImageClassifier")
    out = ["--out", str(tmp_path / "x.pth")]
    with pytest.raises(ConfigError, match="has no peers or branches"):
        made.run(*out, "--peer", "1")
    with pytest.raises(ConfigError, match="has no exits"):
        made.run(*out, "--exits")
    with pytest.raises(CheckpointError, match="does not exist"):
        main([made.config, str(tmp_path / "none.pth"), *out])
    with pytest.raises(ConfigError, match="--shape"):
        made.run(*out, "--shape", "8")
    # A bare state dict is enough for the network, and for nothing else.
    other = tmp_path / "mutual"
    other.mkdir()
    mutual = Made(tiny_data, other, "MutualClassifier")
    bare = tmp_path / "bare.pth"
    torch.save(mutual.model.state_dict(), bare)
    main([mutual.config, str(bare), "--out", str(tmp_path / "y.pth")])
    with pytest.raises(CheckpointError, match="holds the network alone"):
        main([mutual.config, str(bare), *out, "--peer", "1"])
    assert not Path(out[1]).exists()
    assert not list(tmp_path.glob(".*"))


def test_configs_of_other_tasks():
    model = dict(type="ImageClassifier", network=NETWORK)
    with pytest.raises(ConfigError, match="of no classifier"):
        build_classifier(Config(dict(task="gan", model=model)))
    with pytest.raises(ConfigError, match="is a CifarResNet; expected an ImageClassifier"):
        build_classifier(Config(dict(task="classification", model=NETWORK)))
    with pytest.raises(ConfigError, match="CifarResNte"):
        wrong = dict(type="ImageClassifier", network=dict(type="CifarResNte"))
        build_classifier(Config(dict(task="classification", model=wrong)))


def test_a_distill_entry_is_left_out(tiny_data, tmp_path):
    made = Made(tiny_data, tmp_path, "ImageClassifier")
    cfg = load_config(made.config)
    cfg.distill = dict(teacher=dict(config="nowhere.py"))
    model = build_classifier(cfg, made.checkpoint)
    torch.testing.assert_close(model(images()), made.model(images()))


class Loses(nn.Module):
    """Computes something else when it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + (100.0 if torch.compiler.is_exporting() else 0.0)


def test_a_program_that_differs_is_not_kept(tmp_path):
    with pytest.raises(DistillError, match="differs from torch"):
        export_program(Loses(), tmp_path / "net.pt2", (3, 8, 8))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ShapeError, match="channels, height and width"):
        export_program(Loses(), tmp_path / "net.pt2", (8, 8))
    with pytest.raises(ShapeError, match="does not run on images of 2x8x8"):
        export_program(nn.Conv2d(3, 3, 1), tmp_path / "net.pt2", (2, 8, 8))


def test_onnx_needs_its_packages(tmp_path, monkeypatch):
    from taskdistill.tasks.common import export

    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs onnx, which is not installed"):
        export_onnx(Loses(), tmp_path / "net.onnx", (3, 8, 8))
