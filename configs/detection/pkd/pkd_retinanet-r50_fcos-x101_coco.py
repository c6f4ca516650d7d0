# PKD (Cao et al., NeurIPS 2022) between families, on COCO: FCOS ResNeXt-101 64x4d -> RetinaNet
# ResNet-50. Only the pattern of each channel is compared, so that heads may differ. mmrazor's
# settings: weight 10 on each of the first four levels, of which a pair takes the mean.
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::fcos/fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.py"),
    pairs=[dict(student="neck[0:4]", loss="PearsonDistance", weight=4 * 10.0, name="pkd")],
)
