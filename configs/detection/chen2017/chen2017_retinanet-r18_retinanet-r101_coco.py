# Chen et al., NeurIPS 2017, on a dense detector: hint on the pyramid through 1x1 adapters,
# class-weighted soft loss, teacher-bounded regression. RetinaNet ResNet-101 -> ResNet-18 on COCO.
_base_ = ["mmdet::retinanet/retinanet_r18_fpn_1x_coco.py", "../_base_/chen2017_pairs.py"]
distill = dict(
    teacher=dict(config="mmdet::retinanet/retinanet_r101_fpn_1x_coco.py"),
)
