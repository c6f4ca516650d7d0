# The teacher of structured distillation on Cityscapes: PSPNet ResNet-101 with the stem and the
# auxiliary head of Liu et al., 70.43 M parameters, trained as the student is.
_base_ = "../_base_/liu2019_pspnet-r18.py"
model = dict(
    pretrained="open-mmlab://resnet101_v1c",
    backbone=dict(depth=101),
    decode_head=dict(in_channels=2048, channels=512),
    auxiliary_head=dict(in_channels=1024, channels=512),
)
