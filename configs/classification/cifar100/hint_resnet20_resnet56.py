# A hint in one stage (69.21 % in Tian et al. 2020): their 100 times the mean squared difference, of
# which Hint is half.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    pairs=[dict(student="layer2", loss="Hint", adapter="conv1x1", weight=200.0)],
)
