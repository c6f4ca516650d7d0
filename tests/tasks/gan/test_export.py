from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

import taskdistill.tasks.gan  # noqa: F401
from taskdistill.core.errors import CheckpointError, ConfigError, DistillError, ShapeError
from taskdistill.tasks.gan.export import (
    build_generator,
    export_onnx,
    export_program,
    export_state,
    load_generator,
    main,
)
from taskdistill.tasks.gan.models import (
    MobileResnetGenerator,
    ResnetGenerator,
    SuperMobileResnetGenerator,
    UnetGenerator,
)

ROOT = Path(__file__).resolve().parents[3]
TINY = dict(type="ResnetGenerator", width=4, blocks=1)
DISCRIMINATOR = dict(type="PatchDiscriminator", width=4, layers=1)


class Made:
    """A config and a checkpoint of a freshly made model, as training writes it."""

    def __init__(self, folder: Path, kind: str = "ImageTranslator", generator: dict = TINY) -> None:
        model = dict(type=kind, generator=generator, discriminator=DISCRIMINATOR)
        if kind == "CycleGAN":
            model["identity"] = 0
        loader = dict(dataset=dict(type="UnalignedImages", crop_size=16))
        entries = dict(task="gan", default_scope="mmengine", model=model, val_dataloader=loader)
        torch.manual_seed(0)
        self.model = MODELS.build(model).eval()
        self.config, self.checkpoint = str(folder / "config.py"), str(folder / "iter_1.pth")
        Path(self.config).write_text(Config(entries).pretty_text)
        torch.save(dict(meta=dict(), state_dict=self.model.state_dict()), self.checkpoint)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_state_dict_is_the_plain_networks(tmp_path):
    made = Made(tmp_path)
    main([made.config, made.checkpoint, "--out", str(tmp_path / "deep" / "net_G.pth")])
    state = torch.load(tmp_path / "deep" / "net_G.pth", weights_only=True)
    assert all(name.startswith("model.") for name in state)
    plain = ResnetGenerator(width=4, blocks=1).eval()
    plain.load_state_dict(state, strict=True)
    torch.testing.assert_close(plain(images(1, 3, 16, 16)), made.model(images(1, 3, 16, 16)))
    # What was exported is itself a checkpoint.
    again = load_generator(made.config, str(tmp_path / "deep" / "net_G.pth"))
    torch.testing.assert_close(again.state_dict(), state, rtol=0, atol=0)


def test_the_exported_state_is_a_copy():
    generator = ResnetGenerator(width=4, blocks=1)
    state = export_state(generator)
    name = next(iter(state))
    state[name].zero_()
    assert generator.state_dict()[name].abs().sum() > 0


def test_both_generators_of_a_cyclegan(tmp_path):
    made = Made(tmp_path, "CycleGAN", {**TINY, "in_channels": 1, "out_channels": 3})
    there = load_generator(made.config, made.checkpoint)
    back = load_generator(made.config, made.checkpoint, "generator_back")
    image = images(1, 1, 16, 16)
    torch.testing.assert_close(there(image), made.model.generator(image))
    image = images(1, 3, 16, 16)
    torch.testing.assert_close(back(image), made.model.generator_back(image))


def test_files_of_the_cyclegan_release(tmp_path):
    """Statistics of instance norms, a data-parallel prefix: what such files have beside weights."""
    made = Made(tmp_path)
    state = {f"module.{k}": v for k, v in made.model.generator.state_dict().items()}
    state["module.model.2.running_mean"] = torch.zeros(4)
    torch.save(state, tmp_path / "latest_net_G.pth")
    found = load_generator(made.config, str(tmp_path / "latest_net_G.pth"))
    torch.testing.assert_close(found.state_dict(), made.model.generator.state_dict())


@pytest.mark.parametrize(
    "generator",
    [
        ResnetGenerator(width=4, blocks=1),
        MobileResnetGenerator(channels="4_6_3_2_4_8_2_5", blocks=3),
        ResnetGenerator(in_channels=1, width=4, blocks=1, norm="batch", padding="zero"),
    ],
    ids=["resnet", "mobile", "batch-norm"],
)
def test_onnx_computes_the_same_at_any_size(tmp_path, generator):
    runtime = pytest.importorskip("onnxruntime")
    generator.eval()
    path = tmp_path / "net.onnx"
    assert export_onnx(generator, path, (generator.in_channels, 16, 24)) == (
        "batch",
        "height",
        "width",
    )
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 16, 24), (3, 32, 20)):
        image = images(shape[0], generator.in_channels, *shape[1:])
        (found,) = session.run(["translated"], {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), generator(image), atol=1e-4, rtol=0)


def test_programs_of_networks_whose_size_is_fixed(tmp_path):
    generator = UnetGenerator(downs=3, width=4).eval()
    free = export_program(generator, tmp_path / "net.pt2", (3, 16, 16))
    assert free[0] == "batch"
    program = torch.export.load(str(tmp_path / "net.pt2")).module()
    image = images(5, 3, 16, 16)
    torch.testing.assert_close(program(image), generator(image))


def test_a_program_runs_without_taskdistill(tmp_path):
    made = Made(tmp_path)
    path = tmp_path / "net.pt2"
    main([made.config, made.checkpoint, "--program", str(path)])
    image = images(2, 3, 20, 32)
    torch.save(dict(image=image, expected=made.model(image).detach()), tmp_path / "pair.pt")
    script = """
        import sys
        for name in ("taskdistill", "mmengine"):
            sys.modules[name] = None  # importing it fails
        import torch
        pair = torch.load("pair.pt", weights_only=True)
        found = torch.export.load("net.pt2").module()(pair["image"])
        print(float((found - pair["expected"]).abs().max()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


class Unsteady(nn.Module):
    """Gives something else at every call."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_what_differs_is_not_kept(tmp_path, export):
    if export is export_onnx:
        pytest.importorskip("onnxruntime")
    with pytest.raises(DistillError, match="differs from torch by"):
        export(Unsteady(), tmp_path / "net.x", (3, 8, 8))
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    """What it does depends on the pixels, which no exporter can write down."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_what_cannot_be_traced_is_one_message(tmp_path, export):
    with pytest.raises(ConfigError, match="cannot export"):
        export(Branching(), tmp_path / "net.x", (3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_modes_are_given_back(tmp_path):
    generator = ResnetGenerator(width=4, blocks=1, norm="batch", dropout=0.5).train()
    generator.model[2].eval()
    export_program(generator, tmp_path / "net.pt2", (3, 16, 16))
    assert generator.training and not generator.model[2].training


def test_an_image_that_does_not_fit(tmp_path):
    generator = ResnetGenerator(width=4, blocks=1)
    with pytest.raises(ShapeError, match="18"):
        export_program(generator, tmp_path / "net.pt2", (3, 18, 16))
    with pytest.raises(ShapeError, match="channels, height and width"):
        export_program(generator, tmp_path / "net.pt2", (16, 16))


SPACE = [[4, 2], [4, 2], [4, 2], [4, 3], [4, 3], [4, 3], [4, 2], [4, 2]]


def test_super_networks_are_cut(tmp_path):
    settings = dict(type="SuperMobileResnetGenerator", space=SPACE, blocks=3)
    made = Made(tmp_path, generator=settings)
    out = str(tmp_path / "net_G.pth")
    with pytest.raises(ConfigError, match=r"(?s)tools/search.py.*--channels"):
        main([made.config, made.checkpoint, "--out", out])
    assert not Path(out).exists()
    main([made.config, made.checkpoint, "--out", out, "--channels", "2_4_2_3_4_3_2_4"])
    plain = MobileResnetGenerator(channels="2_4_2_3_4_3_2_4", blocks=3).eval()
    plain.load_state_dict(torch.load(out, weights_only=True), strict=True)
    whole = made.model.generator
    assert isinstance(whole, SuperMobileResnetGenerator)
    whole.active = (2, 4, 2, 3, 4, 3, 2, 4)
    image = images(1, 3, 16, 16)
    torch.testing.assert_close(plain(image), whole(image))
    with pytest.raises(ConfigError, match="not in the space"):
        build_generator(Config.fromfile(made.config), made.checkpoint, channels="9_4_2_3_4_3_2_4")


def test_channels_of_a_plain_network(tmp_path):
    made = Made(tmp_path)
    with pytest.raises(ConfigError, match="super-network only"):
        main([made.config, made.checkpoint, "--out", "x.pth", "--channels", "2_4_2_3_4_3_2_4"])


def test_nothing_is_overwritten(tmp_path):
    made = Made(tmp_path)
    out = tmp_path / "net_G.pth"
    out.write_bytes(b"precious")
    command = [made.config, made.checkpoint, "--out", str(out)]
    with pytest.raises(ConfigError, match="--force"):
        main(command)
    assert out.read_bytes() == b"precious"
    before = Path(made.checkpoint).read_bytes()
    with pytest.raises(ConfigError, match="checkpoint itself"):
        main([made.config, made.checkpoint, "--out", made.checkpoint, "--force"])
    assert Path(made.checkpoint).read_bytes() == before
    main([*command, "--force"])
    assert torch.load(out, weights_only=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Nothing to write"),
        (["--out", "same.x", "--onnx", "./same.x"], "same file"),
        (["--out", "."], "a folder"),
        (["--out", "x.pth", "--which", "generator_back"], "CycleGAN"),
    ],
)
def test_commands_that_cannot_be_meant(tmp_path, monkeypatch, options, message):
    made = Made(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main([made.config, made.checkpoint, *options])
    assert {p.name for p in tmp_path.iterdir()} == {"config.py", "iter_1.pth"}


def test_checkpoints_that_do_not_fit(tmp_path):
    made = Made(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_generator(made.config, str(tmp_path / "absent.pth"))
    wide = ResnetGenerator(width=8, blocks=1).state_dict()
    torch.save(wide, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match="other shape"):
        load_generator(made.config, str(tmp_path / "wide.pth"))
    torch.save({f"discriminator.{k}": v for k, v in wide.items()}, tmp_path / "judge.pth")
    with pytest.raises(CheckpointError, match="holds no 'generator', but discriminator"):
        load_generator(made.config, str(tmp_path / "judge.pth"))


def test_configs_of_another_task(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("model = dict(type='GFL')\n")
    with pytest.raises(ConfigError, match="task='gan'"):
        load_generator(str(path), None)


def test_the_script(tmp_path):
    made = Made(tmp_path)
    tool = ROOT / "tools/export_generator.py"
    command = [sys.executable, tool, made.config, tmp_path / "absent.pth", "--out", "x.pth"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and "CheckpointError" in done.stderr
    assert "Traceback" not in done.stderr
