# Channel-wise distillation (Shu et al. 2021) of the last stage's maps.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="layer3", loss="ChannelWiseDistillation", temperature=1.0, weight=2.0),
    ],
)
