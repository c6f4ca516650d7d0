from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("mmengine")
pytest.importorskip("torchvision")

from mmengine.config import ConfigDict  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

from taskdistill.core.errors import CheckpointError, ConfigError  # noqa: E402
from taskdistill.core.taps import Taps  # noqa: E402
from taskdistill.tasks.classification.backbone import (  # noqa: E402
    ClassifierBackbone,
    features_at,
)
from taskdistill.tasks.classification.classifier import ImageClassifier  # noqa: E402
from taskdistill.tasks.classification.models import CifarResNet, MobileNetV2Tiny  # noqa: E402

TINY = dict(type="CifarResNet", depth=8, num_classes=5, widths=(4, 6, 8))
LAYERS = ["layer1", "layer2", "layer3"]
MOBILE = dict(type="MobileNetV2Tiny", num_classes=5)
STAGES = ["stages.2", "stages.4", "stages.6"]


def backbone(**options: Any) -> ClassifierBackbone:
    return ClassifierBackbone(**{"network": TINY, "out": LAYERS, **options})


def trained(**options: Any) -> CifarResNet:
    """A network whose statistics are not those it begins with."""
    made = CifarResNet(**{"depth": 8, "num_classes": 5, "widths": (4, 6, 8), **options})
    made.train()
    for _ in range(3):
        made(torch.randn(4, 3, 16, 16))
    return made.eval()


def save(network: nn.Module, path: Path, **entries: Any) -> str:
    torch.save({"state_dict": network.state_dict(), **entries}, path)
    return str(path)


# -- what comes out --------------------------------------------------------------------------------


def test_it_gives_what_the_named_modules_return():
    network = trained()
    body = ClassifierBackbone(copy.deepcopy(network), ["layer1.0.bn2", "layer2", "layer3.0.relu1"])
    images = torch.randn(2, 3, 20, 13)
    with Taps(network, ["layer1.0.bn2", "layer2", "layer3.0.relu1"]).capture() as captured:
        network(images)
    found = body.eval()(images)
    for name, value in zip(["layer1.0.bn2", "layer2", "layer3.0.relu1"], found, strict=True):
        assert torch.equal(value, captured.tensors(name)[0])
    assert body.out_channels == (4, 6, 8)
    assert body.strides == (1, 2, 4)


def test_the_order_is_that_of_the_names():
    body = backbone(out=["layer3", "layer1"])
    assert body.out_channels == (8, 4) and body.strides == (4, 1)
    assert [x.shape[1] for x in body(torch.randn(1, 3, 16, 16))] == [8, 4]


def test_what_comes_after_is_dropped_and_all_names_are_the_networks():
    whole = CifarResNet(8, 5, widths=(4, 6, 8)).state_dict()
    body = backbone(out=["layer1", "layer2"])
    kept = [name for name in whole if not name.startswith(("layer3", "linear"))]
    assert list(body.state_dict()) == kept
    assert {n.removeprefix("network.") for n, _ in body.named_parameters()} <= set(kept)
    body.load_state_dict({name: whole[name] for name in kept})
    for name in kept:
        assert torch.equal(body.state_dict()[name], whole[name])


def test_within_a_model_and_with_a_child_called_network():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Conv2d(3, 2, 1)
            self.weight = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.weight(self.network(x))

    outer = nn.ModuleDict({"backbone": ClassifierBackbone(Inner(), ["weight"])})
    state = outer.state_dict()
    names = ["network.weight", "network.bias", "weight.weight", "weight.bias"]
    assert list(state) == [f"backbone.{name}" for name in names]
    outer.load_state_dict({name: torch.full_like(v, 2.0) for name, v in state.items()})
    assert all((v == 2).all() for v in outer.state_dict().values())
    with pytest.raises(RuntimeError, match="Unexpected key.*network.extra"):
        outer.load_state_dict(dict(state, **{"backbone.extra": torch.zeros(1)}))


def test_copies_are_independent_and_pickles_whole():
    body = backbone().eval()
    images = torch.randn(1, 3, 16, 16)
    before = [x.detach().clone() for x in body(images)]
    for other in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
        other.load_state_dict(body.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(other(images), before, strict=True))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not other(images)[-1].any()
        assert all(torch.equal(a, b) for a, b in zip(body(images), before, strict=True))


def test_named_modules_and_those_before_may_be_tapped():
    body = ClassifierBackbone(MOBILE, STAGES).eval()
    inside = ["stem.conv", "stages.1", "stages.4", "stages.5.1.expand"]
    names = [f"network.{name}" for name in inside]
    with Taps(body, names).capture() as captured:
        maps = body(torch.randn(1, 3, 64, 64))
    assert captured.tensors("network.stages.4")[0] is maps[1]
    assert captured.tensors("network.stages.5.1.expand")[0].shape == (1, 336, 2, 2)


@pytest.mark.parametrize(
    ("name", "out", "channels", "strides"),
    [
        ("resnet18", ["layer2", "layer3", "layer4"], (128, 256, 512), (8, 16, 32)),
        ("mobilenet_v3_small", ["features.3", "features.8"], (24, 48), (8, 16)),
        ("squeezenet1_1", ["features.4", "features.7"], (128, 256), (4, 8)),
        ("shufflenet_v2_x0_5", ["stage2", "stage4"], (48, 192), (8, 32)),
    ],
)
def test_networks_of_torchvision(name, out, channels, strides):
    body = ClassifierBackbone(dict(type="torchvision", name=name), out)
    # Without padding a map is a cell smaller than its stride says, which is not another stride.
    assert (body.out_channels, body.strides) == (channels, strides)


class Optional(nn.Module):
    """With parameters of its own, and options that a detector does not give."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 5, 1)
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.later = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, short: bool = False, mask: Tensor | None = None) -> Tensor:
        x = self.first(x * self.scale)
        if short:
            return x
        if mask is not None:
            x = x * mask
        return self.second(x) * self.later


def test_parameters_of_the_network_itself_and_options_at_their_defaults():
    network = Optional()
    body = ClassifierBackbone(network, ["second"])
    assert set(body.state_dict()) == {
        "scale", "first.weight", "first.bias", "second.weight", "second.bias"
    }  # fmt: skip
    images = torch.randn(2, 3, 4, 4)
    (found,) = body(images)
    torch.testing.assert_close(found, network.second(network.first(2 * images)))


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(frozen=0), dict(frozen="bn1", norm_eval=True)])
def test_everything_that_is_trained_gets_a_gradient(options: dict[str, Any]):
    body = backbone(out=["layer1", "layer2"], **options).train()
    torch.stack([x.square().sum() for x in body(torch.randn(2, 3, 16, 16))]).sum().backward()
    for name, parameter in body.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        (-1, []),
        (0, ["conv1", "bn1", "layer1"]),
        (1, ["conv1", "bn1", "layer1", "layer2"]),
        ("bn1", ["conv1", "bn1"]),
    ],
)
def test_frozen_parts_stay_as_they_are(frozen: int | str, expected: list[str]):
    body = backbone(frozen=frozen)
    fixed = {n for n, p in body.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in fixed} == set(expected)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1, weight_decay=0.1)
    body.train()
    body(torch.randn(2, 3, 16, 16))[-1].square().sum().backward()
    optimizer.step()
    after = body.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".")[0] for name in after} - changed == set(expected)
    assert not body.network.get_submodule("conv1").training or not expected
    body.eval()
    assert not any(module.training for module in body.modules())


def test_norm_eval_keeps_statistics_and_trains_scales():
    body = backbone(norm_eval=True).train()
    before = {n: v.clone() for n, v in body.state_dict().items()}
    body(torch.randn(2, 3, 16, 16))[-1].square().sum().backward()
    norm = body.network.get_submodule("layer3.0.bn1")
    assert not norm.training and body.network.get_submodule("layer3").training
    assert norm.get_parameter("weight").grad is not None
    for name, value in body.state_dict().items():
        assert "running" not in name or torch.equal(value, before[name])
    other = backbone().train()  # by default they follow
    other(torch.randn(2, 3, 16, 16))
    assert other.state_dict()["bn1.num_batches_tracked"] == 1


def test_converting_batch_norms_reaches_what_is_run():
    body = nn.SyncBatchNorm.convert_sync_batchnorm(backbone())
    names = [str(n.target) for n in body.network.graph.nodes if n.op == "call_module"]
    assert "bn1" in names
    assert isinstance(body.network.get_submodule("bn1"), nn.SyncBatchNorm)
    assert isinstance(body.network.get_submodule("layer1.0.bn1"), nn.SyncBatchNorm)


# -- weights to begin with -------------------------------------------------------------------------


def test_a_training_checkpoint_is_loaded_when_training_begins(tmp_path: Path):
    model = ImageClassifier(trained(), num_classes=5)
    path = save(model, tmp_path / "epoch_3.pth", meta={}, message_hub={}, classification={})
    body = backbone(checkpoint=path)
    before = body.state_dict()["conv1.weight"].clone()
    assert not torch.equal(before, model.network.conv1.weight)
    body.init_weights()
    expected = model.state_dict()
    for name, value in body.state_dict().items():
        assert torch.equal(value, expected[name]), name
    images = torch.randn(1, 3, 24, 16)
    with Taps(model.network, ["layer1"]).capture() as captured:
        model.network(images)
    assert torch.equal(body.eval()(images)[0], captured.tensors("layer1")[0])


def test_a_detector_opens_without_the_file():
    body = backbone(checkpoint="nowhere/epoch_155.pth")
    assert body(torch.randn(1, 3, 16, 16))[0].shape == (1, 4, 16, 16)
    with pytest.raises(CheckpointError, match="nowhere/epoch_155.pth"):
        body.init_weights()


def test_another_number_of_classes_does_not_matter(tmp_path: Path):
    source = trained(num_classes=37)
    body = backbone(checkpoint=save(source, tmp_path / "a.pth"))
    body.init_weights()
    assert torch.equal(body.state_dict()["layer3.0.conv1.weight"], source.layer3[0].conv1.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(widths=(4, 6, 10)), r"other shape .*layer3\.0\.conv1\.weight"),
        (dict(depth=14), r"unexpected .*layer1\.1\.conv1\.weight"),
    ],
)
def test_another_architecture_is_told(options, message, tmp_path: Path):
    body = backbone(checkpoint=save(trained(**options), tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match=message):
        body.init_weights()


def test_a_file_that_lacks_a_layer_is_told(tmp_path: Path):
    state = {n: v for n, v in trained().state_dict().items() if n != "layer1.0.bn1.weight"}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"missing \(1\): layer1\.0\.bn1\.weight"):
        backbone(checkpoint=str(tmp_path / "a.pth")).init_weights()


def test_released_names_are_understood(tmp_path: Path):
    source = MobileNetV2Tiny()
    theirs = {
        f"backbone.input_stem.op_list.0.{name}": value
        for name, value in source.stem.state_dict().items()
    }
    theirs |= {
        f"backbone.input_stem.op_list.1.conv.{place}.{name}": value
        for place, layer in (("depth_conv", "depthwise"), ("point_conv", "project"))
        for name, value in source.get_submodule(f"stages.0.0.{layer}").state_dict().items()
    }
    torch.save(theirs, tmp_path / "released.pth")
    body = ClassifierBackbone(MOBILE, ["stages.0"], checkpoint=str(tmp_path / "released.pth"))
    body.init_weights()
    assert torch.equal(body.state_dict()["stem.conv.weight"], source.stem.conv.weight)


def pretending(pretrained: bool = False) -> nn.Module:
    """A network whose library has weights for it."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1))
    if pretrained:
        nn.init.constant_(network.get_parameter("0.weight"), 3.0)
    return network


def test_weights_that_the_network_asks_for_come_when_training_begins():
    body = ClassifierBackbone(dict(type=pretending, pretrained=True), ["0"])
    assert not (body.state_dict()["0.weight"] == 3).any()
    body.init_weights()
    assert (body.state_dict()["0.weight"] == 3).all()


# -- what cannot be meant --------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "training":
            x = F.dropout(x, 0.5, self.training)
        if self.how == "values" and x.sum() > 0:
            x = -x
        if self.how == "twice":
            x = self.norm(x)
        x = self.relu(self.norm(x))
        return self.flat(self.pool(x))


@pytest.mark.parametrize(
    ("how", "out", "message"),
    [
        ("", ["frist"], "has no module 'frist'. Did you mean 'first'"),
        ("", [], "list of module names"),
        ("", "first", "list of module names, got 'first'"),
        ("", ["first", "first"], "twice"),
        ("", ["unused"], "calls 'unused' 0 times"),
        ("twice", ["norm"], "calls 'norm' 2 times"),
        ("training", ["norm"], "another way to norm in training"),
        ("values", ["norm"], "cannot be followed"),
        ("", ["first", "flat"], r"'flat' gives \(1, 4\), not a map"),
        ("", ["pool"], "'pool' gives a map of one size"),
        ("", ["norm", "relu"], "What norm returns is changed in place"),
    ],
)
def test_modules_that_cannot_be_given_out(how: str, out: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        ClassifierBackbone(Branching(how), out)


def test_before_the_branch_all_is_well():
    body = ClassifierBackbone(Branching("training"), ["first"])
    assert body.out_channels == (4,)


def test_the_mode_of_each_module_is_kept():
    network = Branching("").train()
    network.norm.eval()
    features_at(network, ["norm"])
    assert network.training and network.first.training and not network.norm.training


def test_one_within_another():
    with pytest.raises(ConfigError, match="'layer1.0', which lies within 'layer1'"):
        backbone(out=["layer1.0", "layer1"])


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (3, "an index of out, up to 2"),
        (-2, "must be -1"),
        (True, "must be -1"),
        ("bn2", "frozen='bn2' is not among.*Did you mean 'bn1'"),
        ("linear", "There are: conv1, bn1, relu, layer1"),
    ],
)
def test_what_cannot_be_frozen(frozen: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        backbone(frozen=frozen)


def test_other_images():
    with pytest.raises(ConfigError, match="cannot take an image of 1 x 64 x 64.*in_channels"):
        backbone(in_channels=1)
    one = backbone(network=dict(TINY, in_channels=1), in_channels=1)
    assert one(torch.randn(1, 1, 16, 16))[0].shape == (1, 4, 16, 16)


# -- in a detector ---------------------------------------------------------------------------------


def detector(**options: Any) -> ConfigDict:
    strides = [8, 16, 32]
    return ConfigDict(
        type="GFL",
        data_preprocessor=dict(
            type="DetDataPreprocessor", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4],
            bgr_to_rgb=True, pad_size_divisor=32,
        ),
        backbone=dict(type="ClassifierBackbone", network=MOBILE, out=STAGES, **options),
        neck=dict(type="FPN", in_channels=[16, 32, 112], out_channels=16, num_outs=3),
        bbox_head=dict(
            type="GFLHead", num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1,
            norm_cfg=dict(type="GN", num_groups=4), reg_max=8,
            anchor_generator=dict(
                type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1,
                strides=strides,
            ),
            loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
            loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
            loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=100, min_bbox_size=0, score_thr=0.0,
            nms=dict(type="nms", iou_threshold=0.6), max_per_img=5,
        ),
    )  # fmt: skip


@pytest.fixture
def built(tmp_path: Path):
    pytest.importorskip("mmdet")
    from mmdet.utils import register_all_modules
    from mmengine.registry import DefaultScope

    register_all_modules(init_default_scope=False)
    source = MobileNetV2Tiny(num_classes=9)
    path = save(source, tmp_path / "classifier.pth")
    with DefaultScope.overwrite_default_scope("mmdet"):
        from mmdet.registry import MODELS as DETECTORS

        model = DETECTORS.build(detector(checkpoint=path))
        yield model, source


def batch(model: Any) -> dict[str, Any]:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for _ in range(2):
        sample = DetDataSample(
            metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 6.0, 40.0, 50.0]]), labels=torch.tensor([1])
        )
        samples.append(sample)
    images = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    return dict(inputs=images, data_samples=samples)


def test_a_detector_takes_over_the_weights_and_learns(built, tmp_path: Path):
    from mmengine.optim import OptimWrapper

    model, source = built
    model.init_weights()
    state = model.state_dict()
    kept = {n: v for n, v in source.state_dict().items() if n.startswith(("stem", "stages"))}
    own = {n.removeprefix("backbone.") for n in state if n.startswith("backbone.")}
    assert own == set(kept)
    for name, value in kept.items():
        assert torch.equal(state[f"backbone.{name}"], value), name
    before = {name: value.clone() for name, value in state.items()}
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    model.train()
    data = model.data_preprocessor(batch(model), True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    losses = model.train_step(batch(model), wrapper)
    assert losses["loss"].isfinite()
    first = "backbone.stem.conv.weight"
    assert not torch.equal(model.state_dict()[first], before[first])
    # What is deployed opens where the classifier's file is gone.
    torch.save(model.state_dict(), tmp_path / "detector.pth")
    Path(model.backbone.checkpoint).unlink()
    other = MODELS.build(detector(checkpoint=model.backbone.checkpoint))
    other.load_state_dict(torch.load(tmp_path / "detector.pth", weights_only=True))
    images = batch(model)
    with torch.no_grad():
        scores = [m.eval().test_step(images)[0].pred_instances.scores for m in (model, other)]
    assert len(scores[0]) and torch.equal(*scores)


def test_the_channels_are_those_of_the_neck(built):
    model, _ = built
    assert list(model.backbone.out_channels) == detector()["neck"]["in_channels"]
    assert list(model.backbone.strides) == [8, 16, 32]


CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "detection" / "netaug_transfer"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_shipped_detectors_fit_their_backbones(path: Path):
    pytest.importorskip("mmdet")
    from mmengine.config import Config

    cfg = Config.fromfile(path)
    assert "taskdistill.tasks.classification" in cfg.custom_imports.imports
    body = MODELS.build(cfg.model.backbone)
    assert list(body.out_channels) == list(cfg.model.neck.in_channels)
    assert body.strides == (8, 16, 32)
    assert not cfg.model.neck.get("start_level")
