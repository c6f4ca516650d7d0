# Chen et al., NeurIPS 2017, whole, on Faster R-CNN ResNet-101 (2x) -> ResNet-50 (1x) on COCO.
_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "../_base_/chen2017_two_stage_pairs.py",
]
distill = dict(
    teacher=dict(config="mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py"),
)
