# Channel-wise distillation of the logits on Cityscapes: PSPNet ResNet-101 -> ResNet-18.
# Shu et al., ICCV 2021. Crops, schedule, temperature and weight as in the authors' code, which
# trains in the setting of Liu et al.; reductions are the same.
_base_ = "../_base_/liu2019_pspnet-r18.py"
distill = dict(
    # The weights are those of mmseg's model zoo, named in the config's metafile.
    teacher=dict(config="mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py"),
    pairs=[
        dict(
            student="outputs.logits",
            loss="ChannelWiseDistillation",
            temperature=4.0,
            weight=3.0,
        ),
    ],
)
