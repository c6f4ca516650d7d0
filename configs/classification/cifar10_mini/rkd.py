# Relational knowledge distillation (Park et al. 2019): distances and angles between images.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="linear@input", loss="RKDDistance", weight=10.0),
        dict(student="linear@input", loss="RKDAngle", weight=20.0),
    ],
)
