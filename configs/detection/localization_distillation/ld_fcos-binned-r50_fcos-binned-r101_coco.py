# Localization distillation on a detector without anchors: FCOS with its distances turned into
# distributions (Zheng et al., CVPR 2022), ResNet-101 -> ResNet-50 on COCO. There is no valuable
# region without anchors.
_base_ = ["mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", "../_base_/ld_pairs.py"]
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)
model = dict(bbox_head=dict(type="BinnedFCOSHead"))
distill = dict(
    teacher=dict(
        config="configs/detection/localization_distillation/fcos-binned_r101_coco.py",
        checkpoint="work_dirs/fcos-binned_r101_coco/epoch_12.pth",
    ),
    pairs=[{{_base_.ld}}, {{_base_.kd}}],
)
