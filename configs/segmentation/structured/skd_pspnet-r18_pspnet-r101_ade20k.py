# Structured distillation on ADE20K at 512x512: PSPNet ResNet-101 (160k) -> ResNet-18 (80k), with
# the weights of Liu et al. for Cityscapes. Schedule and data are mmseg's (4 GPUs of 4 images).
_base_ = [
    "mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py",
    "../_base_/liu2019_pairs.py",
]
model = dict(
    pretrained="open-mmlab://resnet18_v1c",
    backbone=dict(depth=18),
    decode_head=dict(in_channels=512, channels=128),
    auxiliary_head=dict(in_channels=256, channels=64),
)
distill = dict(
    # The weights are those of mmseg's model zoo, named in the config's metafile.
    teacher=dict(config="mmseg::pspnet/pspnet_r101-d8_4xb4-160k_ade20k-512x512.py"),
)
