# Logits and the relations between images.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    task_weights=dict(loss_cls=0.1),
    pairs=[
        dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, weight=0.9),
        dict(student="linear@input", loss="RKDDistance", weight=10.0),
        dict(student="linear@input", loss="RKDAngle", weight=20.0),
    ],
)
