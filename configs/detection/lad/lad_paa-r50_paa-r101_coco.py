# Label assignment distillation on COCO, the paper's setting: PAA ResNet-101 assigns the labels that
# PAA ResNet-50 learns. Nguyen et al., WACV 2022: 40.4 AP alone, 41.6 so (their README).
_base_ = "mmdet::paa/paa_r50_fpn_1x_coco.py"
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::paa/paa_r101_fpn_1x_coco.py"),
    assignment=dict(scheme="own"),
    pairs=[],
)
