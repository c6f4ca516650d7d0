# A baseline: the policy that AutoAugment found for CIFAR-10 (Cubuk et al. 2019).
_base_ = "student.py"
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomHorizontalFlip"),
            dict(type="AutoAugment", policy="CIFAR10"),
        ]
    )
)
