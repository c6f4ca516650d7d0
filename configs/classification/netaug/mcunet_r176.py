# NetAug on MCUNet, 176 pixels: 61.4 % without, 62.7 % with it (authors' README).
_base_ = "mobilenet_v2_tiny_r144.py"
size = 176
model = dict(network=dict(type="MCUNet"), width=[1.0, 1.6, 2.2])
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="RandomResizedCrop", size=size),
            dict(type="RandomHorizontalFlip"),
            dict(type="ColorJitter", brightness=32 / 255, saturation=0.5),
        ]
    )
)
val_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type="Resize", size=202),  # size / 0.875
            dict(type="CenterCrop", size=size),
        ]
    )
)
test_dataloader = val_dataloader
