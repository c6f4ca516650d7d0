# Fine-grained imitation (Wang et al., CVPR 2019): the pyramid near the objects, where anchors fit
# them nearly as well as the best one. Faster R-CNN ResNet-101 -> ResNet-50 on COCO (the paper: one
# level). Their factor 0.01 goes with a sum over the channels and half the mean over the cells, here
# it is a mean over both: 0.01 * 256 / 2.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"),
    pairs=[
        dict(
            student="neck",
            loss="FeatureImitation",
            region="fine_grained",
            adapter="conv3x3",
            weight=0.01 * 256 / 2,
            name="fine_grained",
        ),
    ],
)
