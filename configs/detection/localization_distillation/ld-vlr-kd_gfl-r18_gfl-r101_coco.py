# Both kinds of distillation in both regions, the four terms of the paper: LD and KD, main and VLR.
# GFL ResNet-101 (2x) -> ResNet-18 (1x) on COCO; Zheng et al., CVPR 2022. Their code multiplies the
# fourth by 0; here it weighs as much as the third.
_base_ = "ld_gfl-r18_gfl-r101_coco.py"
distill = dict(
    pairs=[
        {{_base_.ld}},
        {{_base_.ld_vlr}},
        {{_base_.kd}},
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            temperature=2.0,
            region="vlr",
            weight=10 / 80,
            name="kd_vlr",
        ),
    ],
)
