# Activation boundaries (69.47 % in Tian et al. 2020, then the labels alone): 30 epochs of them,
# then the softened logits, as the authors train.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    stages=[
        dict(name="boundaries", until=30, task_weight=0.0, freeze=["linear"]),
        dict(name="kd", task_weight=0.1),
    ],
    pairs=[
        dict(
            student="layer?.2.relu2@input",
            teacher="layer?.8.relu2@input",
            loss="ActivationBoundaries",
            adapter="conv1x1",
            stage="boundaries",
            weight=0.01,
        ),
        dict(
            student="outputs.logits",
            loss="KLDivergence",
            temperature=4.0,
            stage="kd",
            weight=0.9,
        ),
    ],
)
