# Channel-wise distillation of features on Cityscapes: PSPNet ResNet-101 -> ResNet-18.
# Shu et al., ICCV 2021, on the map after the pyramid. The student's 128 channels go to the
# teacher's 512 through a 1x1 convolution (in the authors' code a batch norm and a ReLU follow it).
# The weight is that of a run in the authors' repository; its script names none for features.
_base_ = "../_base_/liu2019_pspnet-r18.py"
distill = dict(
    # The weights are those of mmseg's model zoo, named in the config's metafile.
    teacher=dict(config="mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py"),
    pairs=[
        dict(
            student="decode_head.bottleneck",
            loss="ChannelWiseDistillation",
            temperature=1.0,
            weight=35.0,
        ),
    ],
)
