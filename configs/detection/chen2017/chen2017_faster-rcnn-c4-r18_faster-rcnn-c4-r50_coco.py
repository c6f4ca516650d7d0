# Chen et al., NeurIPS 2017, on Faster R-CNN with a single level, as the paper has it: ResNet-50 ->
# ResNet-18 on COCO. The teacher was trained on BGR images without scaling, the student's ImageNet
# weights want RGB: the teacher's images are converted for it.
_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py",
    "../_base_/chen2017_two_stage_pairs.py",
]
resnet18 = dict(type="Pretrained", checkpoint="torchvision://resnet18")
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(depth=18, style="pytorch", init_cfg=resnet18),
    rpn_head=dict(in_channels=256, feat_channels=256),
    roi_head=dict(
        shared_head=dict(depth=18, style="pytorch", init_cfg=resnet18),
        bbox_roi_extractor=dict(out_channels=256),
        bbox_head=dict(in_channels=512),
    ),
)
distill = dict(
    teacher=dict(config="mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py"),
    pairs=[
        dict(student="backbone", loss="Hint", adapter="conv1x1", weight=0.5, name="hint"),
        {{_base_.rpn_cls}},
        {{_base_.rpn_box}},
        {{_base_.roi_cls}},
        {{_base_.roi_box}},
    ],
)
