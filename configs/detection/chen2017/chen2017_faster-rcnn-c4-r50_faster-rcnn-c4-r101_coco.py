# Chen et al., NeurIPS 2017, on Faster R-CNN with a single level, as the paper has it: ResNet-101 ->
# ResNet-50 on COCO. The hint is the map that both stages read, of 1024 channels in either network;
# the paper finds the 1x1 adapter to help even then.
_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py",
    "../_base_/chen2017_two_stage_pairs.py",
]
distill = dict(
    teacher=dict(
        config="configs/detection/chen2017/faster-rcnn-c4_r101-caffe_coco.py",
        checkpoint="work_dirs/faster-rcnn-c4_r101-caffe_coco/epoch_12.pth",
    ),
    pairs=[
        dict(student="backbone", loss="Hint", adapter="conv1x1", weight=0.5, name="hint"),
        {{_base_.rpn_cls}},
        {{_base_.rpn_box}},
        {{_base_.roi_cls}},
        {{_base_.roi_box}},
    ],
)
