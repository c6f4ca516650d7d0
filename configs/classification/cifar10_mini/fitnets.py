# FitNets (Romero et al. 2015) in two stages: up to the hint layer, then the whole student from
# labels and softened logits, whose weight falls from 4 to 1.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
hint = 0.5
max_epochs = 2
distill = dict(
    teacher={{_base_.teacher}},
    stages=[
        dict(name="hint", until=hint, task_weight=0.0, train=["conv1", "bn1", "layer1", "layer2"]),
        dict(name="kd"),
    ],
    pairs=[
        dict(student="layer2", loss="Hint", adapter="fitnets", stage="hint"),
        dict(
            student="outputs.logits",
            loss="KLDivergence",
            temperature=3.0,
            stage="kd",
            start=hint,
            stop=max_epochs,
            weight=4.0,
            final_weight=1.0,
        ),
    ],
)
