# Label assignment distillation on another detector (Nguyen et al., WACV 2022): labels from the
# probabilistic assignment on the predictions of GFL ResNet-101 (2x), learned by GFL ResNet-50 (1x)
# on COCO. GFL's own assigner looks at no predictions, so that a teacher's would be the student's.
_base_ = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py"),
    assignment=dict(scheme="paa"),
    pairs=[],
)
