# DIST (Huang et al. 2022): correlations over classes and over images.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="outputs.logits", loss="DIST", weight=2.0),
    ],
)
