# Attention transfer (70.55 % in Tian et al. 2020): 1000 for each of three maps, of which a pair is
# the mean.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    pairs=[dict(student="layer?", loss="AttentionTransfer", form="code", weight=3000.0)],
)
