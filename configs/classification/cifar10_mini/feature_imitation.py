# Features of the last stage as they are, squared difference a channel.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="layer3", loss="FeatureImitation", weight=1.0),
    ],
)
