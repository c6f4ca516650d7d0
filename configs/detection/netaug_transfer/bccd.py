# A classifier's network as the backbone of the BCCD student's detector. It begins with random
# weights; a classifier's training checkpoint takes their place by
#     --cfg-options model.backbone.checkpoint=work_dirs/RUN/epoch_N.pth
_base_ = "../bccd/student.py"
custom_imports = dict(
    imports=["taskdistill.tasks.detection", "taskdistill.tasks.classification"],
    allow_failed_imports=False,
)
model = dict(
    backbone=dict(
        _delete_=True,
        type="ClassifierBackbone",
        network=dict(type="MobileNetV2Tiny", num_classes=1000),
        out=["stages.2", "stages.4", "stages.6"],  # strides 8, 16 and 32
        checkpoint=None,
    ),
    neck=dict(in_channels=[16, 32, 112]),
)
