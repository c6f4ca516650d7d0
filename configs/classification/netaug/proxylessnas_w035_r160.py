# NetAug on ProxylessNAS-Mobile at width 0.35, 160 pixels: 59.1 % without, 60.8 % with it (README).
_base_ = "mobilenet_v2_tiny_r144.py"
size = 160
model = dict(network=dict(type="ProxylessNASMobile", width=0.35))
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
            dict(type="Resize", size=183),  # size / 0.875
            dict(type="CenterCrop", size=size),
        ]
    )
)
test_dataloader = val_dataloader
