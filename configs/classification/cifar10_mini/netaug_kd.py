# Network augmentation together with kd.py, in both forward passes.
_base_ = ["netaug.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    task_weights=dict(loss_cls=0.1, loss_aug=0.1),
    pairs=[
        dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, weight=0.9),
        dict(
            student="outputs.aug_logits",
            teacher="outputs.logits",
            loss="KLDivergence",
            temperature=4.0,
            weight=0.9,
            name="augmented",
        ),
    ],
)
