# A baseline: a square of 16 pixels cut out of each image (DeVries and Taylor 2017).
_base_ = "student.py"
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomHorizontalFlip"),
            dict(type="Cutout", length=16),
        ]
    )
)
