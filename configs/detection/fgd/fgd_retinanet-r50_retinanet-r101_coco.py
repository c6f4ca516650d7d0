# FGD (Yang et al., CVPR 2022) on COCO: RetinaNet ResNet-101 (2x) -> ResNet-50 (2x).
_base_ = ["mmdet::retinanet/retinanet_r50_fpn_2x_coco.py", "../_base_/fgd_one_stage_pairs.py"]
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
distill = dict(
    teacher=dict(config="mmdet::retinanet/retinanet_r101_fpn_2x_coco.py"),
)
