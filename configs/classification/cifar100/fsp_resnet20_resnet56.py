# Flow matrices (69.95 % in Tian et al. 2020): 30 epochs of them, then the labels.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    stages=[
        dict(name="flow", until=30, task_weight=0.0, freeze=["linear"]),
        dict(name="task"),
    ],
    pairs=[
        dict(student="layer?@input + layer?", loss="FSP", stage="flow", weight=1.0),
    ],
)
