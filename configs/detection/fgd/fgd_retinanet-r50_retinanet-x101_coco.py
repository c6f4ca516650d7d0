# FGD on COCO, the paper's setting: RetinaNet ResNeXt-101 64x4d -> ResNet-50 (2x), the student
# trained with clipped gradients as in the authors' code.
_base_ = ["mmdet::retinanet/retinanet_r50_fpn_2x_coco.py", "../_base_/fgd_one_stage_pairs.py"]
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py"),
)
