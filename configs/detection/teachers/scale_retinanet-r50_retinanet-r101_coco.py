# A teacher that sees the images 1.5 times as large: RetinaNet ResNet-101 -> ResNet-50 on COCO. Its
# maps are pooled to the student's size; only features can be compared so.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
distill = dict(
    teacher=dict(config="mmdet::retinanet/retinanet_r101_fpn_2x_coco.py", scale=1.5),
    pairs=[dict(student="neck[0:4]", loss="PearsonDistance", weight=4 * 10.0, name="pkd")],
)
