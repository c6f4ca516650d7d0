# Decoupled distillation (Zhao et al. 2022): 1 and 2 at temperature 4, 20 epochs of warm-up.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    pairs=[
        dict(
            student="outputs.logits",
            loss="DecoupledKD",
            alpha=1.0,
            beta=2.0,
            temperature=4.0,
            warmup=20,
        ),
    ],
)
