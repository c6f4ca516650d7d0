# Imitation of the pyramid inside the objects' boxes alone: the background would outweigh them.
# RetinaNet ResNet-101 -> ResNet-50 on COCO.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::retinanet/retinanet_r101_fpn_1x_coco.py"),
    pairs=[
        dict(student="neck", loss="FeatureImitation", region="boxes", weight=1.0, name="boxes"),
    ],
)
