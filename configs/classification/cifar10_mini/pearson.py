# PKD (Cao et al. 2022): correlation channel by channel.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="layer3", loss="PearsonDistance", weight=2.0),
    ],
)
