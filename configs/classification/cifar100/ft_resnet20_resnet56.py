# Factor transfer (69.84 % in Tian et al. 2020, in another form): the paraphraser first, as the
# authors do; their weight of 500.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    stages=[
        dict(name="paraphrase", until=30, task_weight=0.0, train=[]),
        dict(name="transfer"),
    ],
    pairs=[dict(student="layer3", loss="ParaphrasedFactorTransfer", form="code", weight=500.0)],
)
