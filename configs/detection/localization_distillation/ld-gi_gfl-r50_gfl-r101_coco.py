# LD in both regions, KD, and imitation of the pyramid at general instances (Dai et al., CVPR 2021):
# where student and teacher disagree most. GFL ResNet-101 (2x) -> ResNet-50 (1x) on COCO.
# Zheng et al., CVPR 2022: 40.1 AP alone, 42.1 with LD and KD, 42.4 so (their README).
# The weight 2 is that of the authors' imitation loss.
_base_ = "ld_gfl-r50_gfl-r101_coco.py"
distill = dict(
    pairs=[
        {{_base_.ld}},
        {{_base_.ld_vlr}},
        {{_base_.kd}},
        dict(student="neck", loss="FeatureImitation", region="gi", weight=2.0, name="gi"),
    ],
)
