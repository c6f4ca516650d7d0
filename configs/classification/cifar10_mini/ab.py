# Activation boundaries (Heo et al. 2019): first which neurons are on, before their ReLU, at the
# end of each stage; then the softened logits, as the authors train.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    stages=[
        dict(name="boundaries", until=0.5, task_weight=0.0, freeze=["linear"]),
        dict(name="kd", task_weight=0.1),
    ],
    pairs=[
        dict(
            student="layer?.0.relu2@input",
            teacher="layer?.8.relu2@input",
            loss="ActivationBoundaries",
            adapter="conv1x1",
            stage="boundaries",
            weight=0.01,
        ),
        dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, stage="kd"),
    ],
)
