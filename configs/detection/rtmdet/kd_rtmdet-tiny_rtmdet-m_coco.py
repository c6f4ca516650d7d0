# RTMDet-m -> RTMDet-tiny on COCO: the teacher's scores, most where it is sure, and the patterns of
# its pyramid (PKD, Cao et al., NeurIPS 2022) through 1x1 adapters, 96 channels to 192.
_base_ = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
distill = dict(
    # The weights are those of mmdet's model zoo, named in the config's metafile.
    teacher=dict(config="mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py"),
    pairs=[
        dict(
            student="outputs.cls",
            loss="KLDivergence",
            activation="sigmoid",
            region="teacher_score",
            weight=1.0,
            name="cls",
        ),
        dict(student="neck", loss="PearsonDistance", weight=6.0, name="neck"),
    ],
)
