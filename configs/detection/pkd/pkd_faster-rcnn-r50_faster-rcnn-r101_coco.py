# PKD (Cao et al., NeurIPS 2022) on COCO: Faster R-CNN ResNet-101 (2x) -> ResNet-50 (2x). mmrazor's
# settings: weight 6 on each of the first four levels, of which a pair takes the mean.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py"),
    pairs=[dict(student="neck[0:4]", loss="PearsonDistance", weight=4 * 6.0, name="pkd")],
)
