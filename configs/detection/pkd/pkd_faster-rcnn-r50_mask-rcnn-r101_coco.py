# PKD (Cao et al., NeurIPS 2022) on COCO, from a teacher that has learned more: Mask R-CNN
# ResNet-101 -> Faster R-CNN ResNet-50. Weights as in pkd_faster-rcnn-r50_faster-rcnn-r101_coco.py.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py"),
    pairs=[dict(student="neck[0:4]", loss="PearsonDistance", weight=4 * 6.0, name="pkd")],
)
