# A teacher with a preprocessing of its own: Faster R-CNN ResNet-101 in the caffe style (BGR, not
# scaled) -> ResNet-50 in the pytorch style, on COCO. Each sees the images as it was trained with
# them; nothing needs to be said.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::faster_rcnn/faster-rcnn_r101-caffe_fpn_1x_coco.py"),
    pairs=[dict(student="neck[0:4]", loss="PearsonDistance", weight=4 * 6.0, name="pkd")],
)
