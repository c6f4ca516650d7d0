# Channel-wise distillation on COCO: Faster R-CNN ResNet-101 (2x) -> ResNet-50 (1x).
_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "../_base_/cwd_pairs.py"]
distill = dict(
    teacher=dict(config="mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py"),
)
