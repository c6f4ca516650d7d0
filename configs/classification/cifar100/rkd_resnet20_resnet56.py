# Relations (69.61 % in Tian et al. 2020): 25 times the distances, 50 times the angles.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    pairs=[
        dict(student="linear@input", loss="RKDDistance", weight=25.0),
        dict(student="linear@input", loss="RKDAngle", weight=50.0),
    ],
)
