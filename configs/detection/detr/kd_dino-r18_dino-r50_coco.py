# DINO ResNet-50 -> ResNet-18 on COCO: classes and boxes of the queries that find the same objects,
# after the last decoder layer, and the encoder's memory.
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[128, 256, 512]),
)
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"),
    probe_size=256,  # cells enough for the 900 queries
    pairs=[
        dict(
            student="outputs.cls[-1]",
            loss="KLDivergence",
            activation="sigmoid",
            weight=1.0,
            name="cls",
        ),
        dict(student="outputs.box[-1]", loss="BoundedRegression", weight=5.0, name="box"),
        dict(student="encoder", loss="FeatureImitation", weight=1.0, name="encoder"),
    ],
)
