"""Tiny detectors on tiny pictures: everything real, seconds to train."""

from __future__ import annotations

import copy
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # saved_runs, which several files share

pytest.importorskip("mmdet")

from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.logging import MessageHub  # noqa: E402
from mmengine.registry import DefaultScope, init_default_scope  # noqa: E402
from PIL import Image  # noqa: E402

import taskdistill.tasks.detection  # noqa: E402, F401
from taskdistill.tasks.openmm import load_config, prepare_config  # noqa: E402
from taskdistill.tasks.openmm.runner import build_runner  # noqa: E402

# What a user's own package might add; it never imports taskdistill.
PARTS = '''
import os, signal
import torch
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS


@MODELS.register_module(force=True)
class DropoutFPN(FPN):
    """An FPN with dropout, so that training draws random numbers in the model too."""

    def __init__(self, *args, p=0.2, **kwargs):
        super().__init__(*args, **kwargs)
        self.dropout = torch.nn.Dropout(p)

    def forward(self, inputs):
        return tuple(self.dropout(x) for x in super().forward(inputs))


@HOOKS.register_module(force=True)
class SignalHook(Hook):
    """Send this process the signal that SIGNAL_AT=EPOCH:ITER:NUMBER names, at that point."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if at := os.environ.get("SIGNAL_AT"):
            epoch, step, number = map(int, at.split(":"))
            if (runner.epoch, batch_idx) == (epoch, step):
                os.kill(os.getpid(), number)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class NameConstructor(DefaultOptimWrapperConstructor):
    """Stands for a layer-wise one: remembers which parameter names it saw."""

    seen = []

    def __call__(self, model):
        NameConstructor.seen = [name for name, _ in model.named_parameters()]
        return super().__call__(model)


class NanLoss(torch.nn.Module):
    def forward(self, student, teacher):
        return (student - teacher).sum() * float("nan")
'''

CLASSES = ("red", "green", "blue")
_COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=np.uint8)
_NORMALISED = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


def _write_split(folder: Path, split: str, count: int, seed: int, empty: tuple[int, ...]) -> None:
    """Coloured rectangles on noise; the images in ``empty`` have none."""
    rng = np.random.default_rng(seed)
    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        pixels = rng.integers(60, 140, (64, 64, 3), dtype=np.uint8)
        for _ in range(0 if i in empty else int(rng.integers(1, 4))):
            w, h = (int(v) for v in rng.integers(14, 50, 2))
            x, y = int(rng.integers(0, 64 - w)), int(rng.integers(0, 64 - h))
            label = int(rng.integers(3))
            pixels[y : y + h, x : x + w] = _COLOURS[label]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=label + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
        Image.fromarray(pixels).save(folder / split / f"{i}.png")
        images.append(dict(id=i, file_name=f"{i}.png", width=64, height=64))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / f"{split}.json").write_text(json.dumps(content))


def _head(kind: str, channels: int, strides: list[int], **changes: Any) -> dict[str, Any]:
    head: dict[str, Any] = dict(
        num_classes=3,
        in_channels=channels,
        feat_channels=channels,
        stacked_convs=1,
        norm_cfg=dict(type="GN", num_groups=4, requires_grad=True),
    )
    square = dict(
        type="AnchorGenerator",
        ratios=[1.0],
        octave_base_scale=3,
        scales_per_octave=1,
        strides=strides,
    )
    deltas = dict(
        type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
    )
    focal = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
    giou = dict(type="GIoULoss", loss_weight=2.0)
    if kind == "GFL":
        head.update(
            type="GFLHead",
            reg_max=8,
            anchor_generator=square,
            loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
            loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
            loss_bbox=giou,
        )
    elif kind == "ATSS":
        head.update(
            type="ATSSHead",
            anchor_generator=square,
            bbox_coder=deltas,
            loss_cls=focal,
            loss_bbox=giou,
            loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        )
    elif kind == "RetinaNet":
        head.update(
            type="RetinaHead",
            anchor_generator={**square, "ratios": [0.5, 2.0]},
            bbox_coder=deltas,
            loss_cls=focal,
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        )
    else:
        head.update(
            type="FCOSHead",
            strides=strides,
            regress_ranges=[[-1, 16], [16, 32], [32, 1e8]][-len(strides) :],
            norm_on_bbox=False,
            loss_cls=focal,
            loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
            loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        )
    return {**head, **changes}


def _rpn(channels: int, strides: list[int]) -> dict[str, Any]:
    return dict(
        type="RPNHead",
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[3], ratios=[0.5, 1.0, 2.0], strides=strides
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    )


def _roi_head(channels: int, strides: list[int], masks: bool, **changes: Any) -> dict[str, Any]:
    def extractor(size: int) -> dict[str, Any]:
        return dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=size, sampling_ratio=0),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=16,
        )

    head = dict(
        type="Shared2FCBBoxHead",
        in_channels=channels,
        fc_out_channels=64,
        roi_feat_size=5,
        num_classes=3,
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
        ),
        reg_class_agnostic=False,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    )
    found: dict[str, Any] = dict(
        type="StandardRoIHead", bbox_roi_extractor=extractor(5), bbox_head={**head, **changes}
    )
    if masks:
        found["mask_roi_extractor"] = extractor(7)
        found["mask_head"] = dict(
            type="FCNMaskHead",
            num_convs=1,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=3,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        )
    return found


def _two_stage_train_cfg() -> dict[str, Any]:
    def assigner(positive: float, negative: float, **more: Any) -> dict[str, Any]:
        return dict(
            type="MaxIoUAssigner",
            pos_iou_thr=positive,
            neg_iou_thr=negative,
            ignore_iof_thr=-1,
            **more,
        )

    def sampler(num: int, fraction: float, truth: bool) -> dict[str, Any]:
        return dict(
            type="RandomSampler",
            num=num,
            pos_fraction=fraction,
            neg_pos_ub=-1,
            add_gt_as_proposals=truth,
        )

    return dict(
        rpn=dict(
            assigner=assigner(0.7, 0.3, min_pos_iou=0.3, match_low_quality=True),
            sampler=sampler(64, 0.5, False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=100,
            max_per_img=40,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=dict(
            assigner=assigner(0.5, 0.5, min_pos_iou=0.5, match_low_quality=False),
            sampler=sampler(32, 0.25, True),
            mask_size=14,
            pos_weight=-1,
            debug=False,
        ),
    )


def two_stage_config(
    kind: str = "FasterRCNN",
    width: int = 8,
    strides: tuple[int, ...] = (8, 16, 32),
    neck: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    **head: Any,
) -> dict[str, Any]:
    """A whole Faster or Mask R-CNN; ``head`` changes the box head.

    Of one stride it has no pyramid: proposals and boxes come from the backbone's map, as in the
    C4 models.
    """
    dense = model_config("GFL", width, strides, neck, preprocessor)
    channels, levels = 2 * width, list(strides)
    if len(strides) == 1:
        del dense["neck"]
        channels = width * strides[0] // 4
        used = dense["backbone"]["out_indices"][0] + 1
        steps = dict(strides=(1, 2, 2, 2)[:used], dilations=(1,) * used)
        dense["backbone"].update(num_stages=used, **steps)
    rpn = dict(nms_pre=100, max_per_img=40, nms=dict(type="nms", iou_threshold=0.7))
    rcnn = dict(score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20)
    masks = kind == "MaskRCNN"
    if masks:
        dense["data_preprocessor"]["pad_mask"] = True
    return dict(
        {key: dense[key] for key in ("data_preprocessor", "backbone", "neck") if key in dense},
        type=kind,
        rpn_head=_rpn(channels, levels),
        roi_head=_roi_head(channels, levels, masks, **head),
        train_cfg=_two_stage_train_cfg(),
        test_cfg=dict(rpn={**rpn, "min_bbox_size": 0}, rcnn={**rcnn, "mask_thr_binary": 0.5}),
    )


def model_config(
    kind: str = "GFL",
    width: int = 8,
    strides: tuple[int, ...] = (8, 16, 32),
    neck: Mapping[str, Any] | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    **head: Any,
) -> dict[str, Any]:
    """A whole detector of some ten thousand parameters; ``head`` changes its head."""
    assigners = {
        "GFL": dict(type="ATSSAssigner", topk=9),
        "ATSS": dict(type="ATSSAssigner", topk=9),
        "RetinaNet": dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
        ),
    }
    train_cfg = dict(allowed_border=-1, pos_weight=-1, debug=False)
    if kind in assigners:
        train_cfg["assigner"] = assigners[kind]  # type: ignore[assignment]
        train_cfg["sampler"] = dict(type="PseudoSampler")  # type: ignore[assignment]
    return dict(
        type=kind,
        data_preprocessor=dict(
            type="DetDataPreprocessor",
            **{**_NORMALISED, "bgr_to_rgb": True, "pad_size_divisor": 32, **(preprocessor or {})},
        ),
        backbone=dict(
            type="ResNet",
            depth=18,
            base_channels=width,
            num_stages=4,
            out_indices=tuple({8: 1, 16: 2, 32: 3}[stride] for stride in strides),
            frozen_stages=-1,
            norm_cfg=dict(type="BN", requires_grad=True),
            norm_eval=False,
            style="pytorch",
        ),
        neck={
            "type": "FPN",
            "in_channels": [width * stride // 4 for stride in strides],
            "out_channels": 2 * width,
            "num_outs": len(strides),
            **(neck or {}),
        },
        bbox_head=_head(kind, 2 * width, list(strides), **head),
        train_cfg=train_cfg,
        test_cfg=dict(
            nms_pre=100,
            min_bbox_size=0,
            score_thr=0.0,
            nms=dict(type="nms", iou_threshold=0.6),
            max_per_img=20,
        ),
    )


# Of a teacher, the heads that make a random one's answers differ from position to position.
_ANSWERS = ("bbox_head", "rpn_head")


def _has_masks(model: Mapping[str, Any]) -> bool:
    return "mask_head" in (model.get("roi_head") or {})


class Tiny:
    """Configs, data and teachers in one temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        _write_split(self.data, "train", 12, seed=1, empty=(3, 7))
        _write_split(self.data, "val", 6, seed=2, empty=(0,))
        (folder / "tiny_parts.py").write_text(PARTS)
        self.env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        }
        self._teachers: dict[str, dict[str, str]] = {}

    def model(self, kind: str = "GFL", **changes: Any) -> dict[str, Any]:
        make = two_stage_config if kind.endswith("RCNN") else model_config
        return copy.deepcopy(make(kind, **changes))

    def config(self, model: Mapping[str, Any] | None = None, **entries: Any) -> dict[str, Any]:
        """A whole plain mmdet config, two epochs of three steps; ``entries`` replace or add."""
        model = dict(model or self.model())
        load = dict(type="LoadImageFromFile")
        boxes = dict(type="LoadAnnotations", with_bbox=True, with_mask=_has_masks(model))
        meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        train_pipeline = [
            load,
            boxes,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackDetInputs"),
        ]
        test_pipeline = [
            load,
            dict(type="Resize", scale=(64, 64), keep_ratio=True),
            boxes,
            dict(type="PackDetInputs", meta_keys=meta),
        ]

        def dataset(split: str, pipeline: list[Any], **more: Any) -> dict[str, Any]:
            return dict(
                type="CocoDataset",
                data_root=str(self.data),
                ann_file=f"{split}.json",
                data_prefix=dict(img=split),
                metainfo=dict(classes=CLASSES),
                pipeline=pipeline,
                **more,
            )

        val = dict(
            batch_size=3,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=dataset("val", test_pipeline, test_mode=True),
        )
        metric = ["bbox", "segm"] if _has_masks(model) else "bbox"
        evaluator = dict(type="CocoMetric", ann_file=str(self.data / "val.json"), metric=metric)
        config: dict[str, Any] = dict(
            default_scope="mmdet",
            custom_imports=dict(imports=["tiny_parts"], allow_failed_imports=False),
            model=model,
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type="DefaultSampler", shuffle=True),
                dataset=dataset("train", train_pipeline, filter_cfg=dict(filter_empty_gt=False)),
            ),
            val_dataloader=val,
            test_dataloader=copy.deepcopy(val),
            val_evaluator=evaluator,
            test_evaluator=dict(evaluator),
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=5),
            val_cfg=dict(type="ValLoop"),
            test_cfg=dict(type="TestLoop"),
            optim_wrapper=dict(
                type="OptimWrapper",
                optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
                clip_grad=dict(max_norm=10.0),
            ),
            param_scheduler=[
                dict(
                    type="OneCycleLR",
                    eta_max=2e-3,
                    total_steps=2,
                    by_epoch=True,
                    begin=0,
                    end=2,
                    convert_to_iter_based=True,
                )
            ],
            default_hooks=dict(
                timer=dict(type="IterTimerHook"),
                logger=dict(type="LoggerHook", interval=1),
                param_scheduler=dict(type="ParamSchedulerHook"),
                checkpoint=dict(type="CheckpointHook", interval=1),
                sampler_seed=dict(type="DistSamplerSeedHook"),
            ),
            custom_hooks=[dict(type="SignalHook")],
            env_cfg=dict(
                cudnn_benchmark=False,
                mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
                dist_cfg=dict(backend="gloo"),
            ),
            visualizer=dict(type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")]),
            log_processor=dict(type="LogProcessor", window_size=1, by_epoch=True),
            log_level="WARNING",
            load_from=None,
            resume=False,
            randomness=dict(seed=3),
            auto_scale_lr=dict(enable=False, base_batch_size=2),
        )
        config.update(entries)
        return copy.deepcopy(config)

    def write(self, config: Mapping[str, Any], path: Path | None = None) -> str:
        """Write a config file and return its path."""
        path = path or self.folder / f"config_{uuid.uuid4().hex[:8]}.py"
        path.write_text(Config(dict(config)).pretty_text)
        return str(path)

    def build(self, model: Mapping[str, Any], seed: int = 0) -> Any:
        """The plain mmdet model, initialised."""
        from mmdet.registry import MODELS

        torch.manual_seed(seed)
        built = MODELS.build(ConfigDict(copy.deepcopy(dict(model))))
        built.init_weights()
        return built

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
            elif name.endswith("weight") and any(part in name for part in _ANSWERS):
                if value.ndim == 4 or ".fc_" in name:
                    value.normal_(0, 0.2, generator=generator)
        name = uuid.uuid4().hex[:8]
        checkpoint = self.folder / f"teacher_{name}.pth"
        torch.save({"meta": {}, "state_dict": state}, checkpoint)
        return dict(config=self.write(self.config(model)), checkpoint=str(checkpoint))

    def teacher(self, kind: str = "GFL", **changes: Any) -> dict[str, str]:
        """A teacher twice as wide as the student."""
        key = f"{kind} {changes}" if changes else kind
        if key not in self._teachers:
            neck = dict(type="DropoutFPN", p=0.5)
            model = self.model(kind, **{"width": 16, "neck": neck, **changes})
            self._teachers[key] = self.save_teacher(model)
        return dict(self._teachers[key])

    def distill(self, *pairs: Mapping[str, Any], kind: str = "GFL", **options: Any) -> dict:
        """A ``distill`` entry: the wide teacher, and these pairs (or some of every sort)."""
        return dict(teacher=self.teacher(kind), pairs=[dict(p) for p in pairs or PAIRS], **options)

    def wrap(self, config: Mapping[str, Any], work_dir: Path) -> Config:
        """What tools/train.py makes of a config."""
        cfg = Config(dict(config))
        cfg.work_dir = str(work_dir)
        cfg.launcher = "none"
        return prepare_config(cfg)

    def runner(self, config: Mapping[str, Any], work_dir: Path) -> Any:
        cfg = self.wrap(config, work_dir)
        # Runs begun in one second would share mmengine's message hub.
        cfg.experiment_name = uuid.uuid4().hex
        return build_runner(cfg)

    def train(self, config: Mapping[str, Any], work_dir: Path) -> Any:
        """Train in this process and return the runner."""
        runner = self.runner(config, work_dir)
        runner.train()
        return runner

    def batch(self, model: Any, *names: str, split: str = "train") -> tuple[Any, Any]:
        """Images and annotations of this data set, as the model's preprocessor gives them."""
        from mmdet.registry import DATASETS

        entry = self.config()[f"{split}_dataloader"]["dataset"]
        entry["pipeline"] = [
            dict(type="LoadImageFromFile"),
            dict(
                type="LoadAnnotations",
                with_bbox=True,
                with_mask=getattr(getattr(model, "roi_head", None), "with_mask", False),
            ),
            dict(type="PackDetInputs", meta_keys=("img_path", "ori_shape", "img_shape")),
        ]
        data = DATASETS.build(entry)
        items = [data[int(name)] for name in names or ("0", "1", "2", "4")]
        packed = {key: [item[key] for item in items] for key in items[0]}
        packed = model.data_preprocessor(packed, training=True)
        return packed["inputs"], packed["data_samples"]


PAIRS = (
    dict(student="neck", loss="FeatureImitation", weight=0.5, name="neck"),
    dict(
        student="outputs.cls",
        loss="KLDivergence",
        activation="sigmoid",
        region="teacher_score",
        name="cls",
    ),
    dict(
        student="outputs.box_bins", loss="LocalizationDistillation", region="main_score", name="ld"
    ),
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    folder = tmp_path_factory.mktemp("tiny")
    made = Tiny(folder)
    sys.path.insert(0, str(folder))
    import tiny_parts  # noqa: F401

    init_default_scope("mmdet")
    yield made
    sys.path.remove(str(folder))


@pytest.fixture(autouse=True)
def mmdet_scope() -> Iterator[None]:
    """Heads and necks are looked up in mmdet's registries; afterwards all is as it was before.

    Folders of other libraries' tests put their own in its place.
    """
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture(autouse=True)
def fresh_message_hub() -> None:
    """Where training stands is in mmengine's newest hub, which an earlier test may have left."""
    MessageHub._instance_dict.clear()  # type: ignore[attr-defined]


@pytest.fixture
def read_config() -> Any:
    return load_config
