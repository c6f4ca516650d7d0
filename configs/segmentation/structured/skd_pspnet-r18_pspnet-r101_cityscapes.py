# Structured distillation on Cityscapes, the paper's setting: PSPNet ResNet-101 -> ResNet-18.
# Liu et al., TPAMI: 69.10 mIoU alone, 70.51 with the pixel-wise term, 71.78 with the pair-wise one
# too, 74.08 with all three (their README).
_base_ = ["../_base_/liu2019_pspnet-r18.py", "../_base_/liu2019_pairs.py"]
distill = dict(
    # Trained by: python tools/train.py configs/segmentation/structured/pspnet_r101_cityscapes.py
    # Or take the teacher of mmseg's model zoo, which comes with its weights:
    # teacher=dict(config="mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py")
    teacher=dict(
        config="configs/segmentation/structured/pspnet_r101_cityscapes.py",
        checkpoint="work_dirs/pspnet_r101_cityscapes/iter_40000.pth",
    ),
)
