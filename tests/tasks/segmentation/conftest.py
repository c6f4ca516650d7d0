"""Tiny segmentation networks on tiny pictures: everything real, seconds to train."""

from __future__ import annotations

import copy
import importlib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.config import ConfigDict  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402
from PIL import Image  # noqa: E402

import taskdistill.tasks.segmentation  # noqa: E402, F401

# What a user's own package might add; it never imports taskdistill.
PARTS = '''
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

if os.environ.get("PLAIN_CONFIG_TEXT"):
    from yapf.yapflib import yapf_api

    yapf_api.FormatCode = lambda text, **_: (text, True)


@HOOKS.register_module(force=True)
class StopHook(Hook):
    """Kill this process after the step that STOP_AFTER names, counted from 1 over the whole run."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == int(os.environ.get("STOP_AFTER", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
'''

CLASSES = ("ground", "red", "green", "blue")
IGNORED = 255
_COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=np.uint8)
_BN = {"type": "BN", "requires_grad": True}


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    """Coloured rectangles on noise; the outline of each is not labelled."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(60, 140, (64, 64, 3), dtype=np.uint8)
        labels = np.zeros((64, 64), dtype=np.uint8)
        for _ in range(int(rng.integers(1, 4))):
            w, h = (int(v) for v in rng.integers(14, 50, 2))
            x, y = int(rng.integers(0, 64 - w)), int(rng.integers(0, 64 - h))
            label = int(rng.integers(3))
            pixels[y : y + h, x : x + w] = _COLOURS[label]
            labels[y : y + h, x : x + w] = IGNORED
            labels[y + 2 : y + h - 2, x + 2 : x + w - 2] = label + 1
        Image.fromarray(pixels).save(folder / "images" / split / f"{i}.png")
        Image.fromarray(labels).save(folder / "labels" / split / f"{i}.png")


def resnet(width: int, stride: int = 8) -> dict[str, Any]:
    """A backbone of four levels, ``width`` to ``8 * width`` channels."""
    dilated = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}
    strides, dilations = dilated.get(stride, ((1, 2, 2, 2), (1, 1, 1, 1)))
    return dict(
        type="ResNetV1c",
        depth=18,
        base_channels=width,
        stem_channels=width,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        strides=strides,
        dilations=dilations,
        norm_cfg=_BN,
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    )


def fcn_head(channels: int, level: int, **changes: Any) -> dict[str, Any]:
    """An FCN head of one convolution, as auxiliary heads are."""
    head = dict(
        type="FCNHead",
        in_channels=channels,
        in_index=level,
        channels=16,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=len(CLASSES),
        norm_cfg=_BN,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4),
    )
    return {**head, **changes}


def _decoder(kind: str, width: int) -> dict[str, Any]:
    """What stands on the ResNet in each kind of network."""
    levels = [width, 2 * width, 4 * width, 8 * width]
    main = fcn_head(8 * width, 3, loss_decode=dict(type="CrossEntropyLoss"))
    del main["num_convs"], main["concat_input"]
    every = {**main, "in_channels": levels, "in_index": [0, 1, 2, 3]}
    fused = {**every, "input_transform": "resize_concat"}
    heads: dict[str, Any] = {
        "PSP": {**main, "type": "PSPHead", "pool_scales": (1, 2, 3, 6)},
        "FCN": fcn_head(8 * width, 3, num_convs=2, concat_input=True),
        "UPer": {**every, "type": "UPerHead", "pool_scales": (1, 2, 3, 6)},
        "DA": {**main, "type": "DAHead", "pam_channels": 4},
        "OCR": [
            {**fused, "num_convs": 1, "concat_input": False, "kernel_size": 1},
            {**fused, "type": "OCRHead", "ocr_channels": 8},
        ],
        "FPN": {
            **every,
            "type": "FPNHead",
            "in_channels": [16] * 4,
            "feature_strides": [4, 8, 16, 32],
        },
        "PointRend": [
            {
                **every,
                "type": "FPNHead",
                "in_channels": [16] * 4,
                "feature_strides": [4, 8, 16, 32],
            },
            {
                **main,
                "type": "PointHead",
                "in_channels": [16],
                "in_index": [0],
                "num_fcs": 1,
                "coarse_pred_each_layer": True,
                "norm_cfg": None,
            },
        ],
    }
    found: dict[str, Any] = dict(decode_head=heads[kind])
    if isinstance(heads[kind], list):
        found.update(type="CascadeEncoderDecoder", num_stages=len(heads[kind]))
    if kind in ("FPN", "PointRend"):
        found["neck"] = dict(type="FPN", in_channels=levels, out_channels=16, num_outs=4)
    return found


def model_config(
    kind: str = "PSP", width: int = 8, stride: int = 8, aux: int = 1, **head: Any
) -> dict[str, Any]:
    """A whole network of some ten thousand parameters.

    Args:
        kind: Of the decoder; or "SegFormer", "DDRNet", which have a backbone of their own.
        width: Channels of the backbone's first level.
        stride: Of the backbone's last level.
        aux: How many auxiliary FCN heads.
        **head: Changes of the main head.
    """
    network: dict[str, Any] = dict(type="EncoderDecoder")
    if kind == "SegFormer":
        network["backbone"] = dict(
            type="MixVisionTransformer",
            embed_dims=width,
            num_layers=[1, 1, 1, 1],
            num_heads=[1, 2, 2, 4],
            patch_sizes=[7, 3, 3, 3],
            sr_ratios=[8, 4, 2, 1],
            out_indices=(0, 1, 2, 3),
            mlp_ratio=2,
            qkv_bias=True,
            drop_path_rate=0.1,
        )
        # Widths as the backbone has them: the first times its number of heads.
        channels = [width, 2 * width, 2 * width, 4 * width]
        network["decode_head"] = dict(
            type="SegformerHead",
            in_channels=channels,
            in_index=[0, 1, 2, 3],
            channels=16,
            dropout_ratio=0.1,
            num_classes=len(CLASSES),
            norm_cfg=_BN,
            align_corners=False,
            loss_decode=dict(type="CrossEntropyLoss"),
        )
    elif kind == "DDRNet":
        loss = dict(type="OhemCrossEntropy", thres=0.9, min_kept=100)
        network["backbone"] = dict(type="DDRNet", channels=width, ppm_channels=8, norm_cfg=_BN)
        network["decode_head"] = dict(
            type="DDRHead",
            in_channels=4 * width,
            channels=16,
            dropout_ratio=0.0,
            num_classes=len(CLASSES),
            norm_cfg=_BN,
            align_corners=False,
            loss_decode=[loss, {**loss, "loss_weight": 0.4}],
        )
    else:
        network["backbone"] = resnet(width, 32 if kind in ("FPN", "PointRend", "UPer") else stride)
        network.update(_decoder(kind, width))
        # As mmseg's configs have it: one head by itself, several in a list.
        auxiliary = [fcn_head(4 * width, 2), fcn_head(2 * width, 1)][:aux]
        if aux and kind not in ("FPN", "PointRend"):
            network["auxiliary_head"] = auxiliary if aux > 1 else auxiliary[0]
    if head:
        network["decode_head"].update(head)
    return dict(
        **network,
        data_preprocessor=dict(
            type="SegDataPreProcessor",
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_val=0,
            seg_pad_val=IGNORED,
            size=(64, 64),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )


# All three terms of structured distillation, with a discriminator of some thousand weights.
PIXELS = dict(student="outputs.logits", loss="PixelWise", weight=10.0, name="pixels")
PAIRS = dict(
    student="decode_head.bottleneck", loss="PairWise", patch=0.5, weight=0.5, name="affinity"
)
MAPS = dict(
    student="outputs.logits",
    loss="Holistic",
    weight=0.1,
    channels=8,
    layers=2,
    attention=(2,),
    name="maps",
)
# An adapter, to see that it is kept apart from the discriminator.
FEATURES = dict(
    student="backbone[3]", loss="FeatureImitation", region="labelled", weight=0.1, name="features"
)
STRUCTURED = (PIXELS, PAIRS, MAPS, FEATURES)


class TinySegmentation:
    """Configs, data and teachers in one temporary folder.

    Args:
        tiny: The detectors' one: what is not of detection (``wrap``, ``runner``, ``train``,
            ``env``) is taken from it.
    """

    classes = CLASSES
    ignored = IGNORED
    pixels, affinity, maps, features = PIXELS, PAIRS, MAPS, FEATURES

    def __init__(self, tiny: Any) -> None:
        self.folder: Path = tiny.folder
        self.env = {**tiny.env, "PLAIN_CONFIG_TEXT": "1"}  # see plain_config_text
        self.wrap, self.runner, self.train = tiny.wrap, tiny.runner, tiny.train
        self.data = self.folder / "segmentation"
        _write_split(self.data, "train", 12, seed=1)
        _write_split(self.data, "val", 6, seed=2)
        (self.folder / "seg_parts.py").write_text(PARTS)
        importlib.import_module("seg_parts")
        self._teachers: dict[str, dict[str, str]] = {}

    def model(self, kind: str = "PSP", **changes: Any) -> dict[str, Any]:
        return copy.deepcopy(model_config(kind, **changes))

    def config(self, model: Mapping[str, Any] | None = None, **entries: Any) -> dict[str, Any]:
        """A whole plain mmseg config, two epochs of three steps; ``entries`` replace or add."""
        load, labels = dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")
        train_pipeline = [
            load,
            labels,
            # Smaller than the crop now and then: some images are padded.
            dict(type="RandomResize", scale=(64, 64), ratio_range=(0.75, 1.5), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.9),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ]
        test_pipeline = [
            load,
            dict(type="Resize", scale=(64, 64), keep_ratio=True),
            labels,
            dict(type="PackSegInputs"),
        ]
        flips = [dict(type="RandomFlip", prob=float(p), direction="horizontal") for p in (0, 1)]
        scales = [dict(type="Resize", scale_factor=s, keep_ratio=True) for s in (0.75, 1.0, 1.25)]
        tta_pipeline = [
            load,
            dict(
                type="TestTimeAug",
                transforms=[scales, flips, [labels], [dict(type="PackSegInputs")]],
            ),
        ]

        def loader(split: str, size: int, shuffle: bool, pipeline: list[Any]) -> dict[str, Any]:
            dataset = dict(
                type="BaseSegDataset",
                data_root=str(self.data),
                data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"labels/{split}"),
                img_suffix=".png",
                metainfo=dict(classes=CLASSES, palette=[[0, 0, 0], *_COLOURS.tolist()]),
                pipeline=pipeline,
            )
            return dict(
                batch_size=size,
                num_workers=0,
                sampler=dict(type="DefaultSampler", shuffle=shuffle),
                dataset=dataset,
            )

        evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
        poly = dict(type="PolyLR", power=0.9, end=2, by_epoch=True, convert_to_iter_based=True)
        config: dict[str, Any] = dict(
            default_scope="mmseg",
            custom_imports=dict(imports=["seg_parts"], allow_failed_imports=False),
            model=dict(model or self.model()),
            train_dataloader=loader("train", 4, True, train_pipeline),
            val_dataloader=loader("val", 1, False, test_pipeline),
            test_dataloader=loader("val", 1, False, test_pipeline),
            val_evaluator=evaluator,
            test_evaluator=dict(evaluator),
            test_pipeline=test_pipeline,
            tta_model=dict(type="SegTTAModel"),
            tta_pipeline=tta_pipeline,
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=5),
            val_cfg=dict(type="ValLoop"),
            test_cfg=dict(type="TestLoop"),
            optim_wrapper=dict(
                type="OptimWrapper",
                optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=5e-4),
                clip_grad=None,
            ),
            param_scheduler=[poly],
            default_hooks=dict(
                timer=dict(type="IterTimerHook"),
                logger=dict(type="LoggerHook", interval=1),
                param_scheduler=dict(type="ParamSchedulerHook"),
                checkpoint=dict(type="CheckpointHook", interval=1),
                sampler_seed=dict(type="DistSamplerSeedHook"),
            ),
            custom_hooks=[dict(type="StopHook")],
            env_cfg=dict(
                cudnn_benchmark=False,
                mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
                dist_cfg=dict(backend="gloo"),
            ),
            visualizer=dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")]),
            log_processor=dict(type="LogProcessor", window_size=1, by_epoch=True),
            log_level="WARNING",
            load_from=None,
            resume=False,
            randomness=dict(seed=3),
        )
        config.update(entries)
        return copy.deepcopy(config)

    def iteration_config(self, model: Mapping[str, Any] | None = None, **entries: Any) -> dict:
        """Six steps counted as steps, as mmseg's own schedules are."""
        config = self.config(model, **entries)
        config["train_cfg"] = dict(type="IterBasedTrainLoop", max_iters=6, val_interval=10)
        config["train_dataloader"]["sampler"] = dict(type="InfiniteSampler", shuffle=True)
        config["param_scheduler"] = [dict(type="PolyLR", power=0.9, end=6, by_epoch=False)]
        config["default_hooks"]["checkpoint"] = dict(
            type="CheckpointHook", interval=3, by_epoch=False
        )
        config["log_processor"]["by_epoch"] = False
        return config

    def write(self, config: Mapping[str, Any]) -> str:
        """Write a config file and return its path."""
        path = self.folder / f"config_{uuid.uuid4().hex[:8]}.py"
        # Not mmengine's pretty text: making that takes longer than what most tests do.
        path.write_text("".join(f"{key} = {value!r}\n" for key, value in config.items()))
        return str(path)

    def build(self, model: Mapping[str, Any], seed: int = 0) -> Any:
        """The plain mmseg model, with torch's own random weights."""
        torch.manual_seed(seed)
        return MODELS.build(ConfigDict(copy.deepcopy(dict(model))))

    def save_teacher(self, model: Mapping[str, Any], seed: int = 7) -> dict[str, str]:
        """Config and checkpoint files of a teacher with random weights and statistics."""
        teacher = self.build(model, seed)
        generator = torch.Generator().manual_seed(seed)
        state = teacher.state_dict()
        for name, value in state.items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("weight") and "head" in name and value.ndim == 4:
                value.normal_(0, 0.2, generator=generator)  # a fresh head says nearly nothing
        checkpoint = self.folder / f"teacher_{uuid.uuid4().hex[:8]}.pth"
        torch.save({"meta": {}, "state_dict": state}, checkpoint)
        config = dict(default_scope="mmseg", model=dict(model))
        return dict(config=self.write(config), checkpoint=str(checkpoint))

    def teacher(self, kind: str = "PSP") -> dict[str, str]:
        """A teacher twice as wide as the student."""
        if kind not in self._teachers:
            self._teachers[kind] = self.save_teacher(self.model(kind, width=16))
        return dict(self._teachers[kind])

    def distill(self, *pairs: Mapping[str, Any], kind: str = "PSP", **options: Any) -> dict:
        """A ``distill`` entry: the wide teacher, and these pairs (or all structured terms)."""
        lines = [dict(pair) for pair in pairs or STRUCTURED]
        return dict(teacher=self.teacher(kind), pairs=lines, **options)

    def distilled(
        self, *pairs: Mapping[str, Any], model: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """The distilled model of a recipe, in training mode."""
        options = {"teacher": self.teacher(), "probe_size": 64, **options}
        distill = dict(pairs=[dict(pair) for pair in pairs or STRUCTURED], **options)
        student = model or self.model()
        network = dict(type="DistilledModel", student=student, distill=distill, scope="mmseg")
        return self.build(network).train()

    def packed(self, *names: str, split: str = "train") -> dict[str, list[Any]]:
        """Images and labels of this data set, as a loader gives them; without augmentation."""
        from mmseg.registry import DATASETS

        entry = self.config()[f"{split}_dataloader"]["dataset"]
        entry["pipeline"] = [
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ]
        data = DATASETS.build(entry)
        items = [data[int(name)] for name in names or ("0", "1", "2", "3")]
        return {key: [item[key] for item in items] for key in items[0]}

    def batch(self, model: Any, *names: str, split: str = "train") -> tuple[Any, Any]:
        """The same, as the model's preprocessor gives them."""
        packed = model.data_preprocessor(self.packed(*names, split=split), training=True)
        return packed["inputs"], packed["data_samples"]


@pytest.fixture(scope="session")
def seg(tiny: Any) -> TinySegmentation:
    return TinySegmentation(tiny)


@pytest.fixture(scope="module", autouse=True)
def mmseg_scope() -> Iterator[None]:
    """Networks are looked up in mmseg's registries here; afterwards all is as it was before."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(autouse=True)
def mmdet_scope() -> Iterator[None]:
    """In place of the one above: what a single test does to the scope ends with it."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(scope="module", autouse=True)
def plain_config_text() -> Iterator[None]:
    """A run writes its config seven times; laying the text out is three quarters of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yapf.yapflib.yapf_api.FormatCode", lambda text, **_: (text, True))
        yield
