# Softened logits (70.66 % in Tian et al. 2020): 0.1 of the labels, 0.9 at temperature 4.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    task_weights=dict(loss_cls=0.1),
    pairs=[dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, weight=0.9)],
)
