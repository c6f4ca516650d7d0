# pix2pix as in its paper and release: U-Net, conditional 70x70 discriminator, batch norm, batch 1.
_base_ = ["../_base_/default.py", "../_base_/maps.py", "../_base_/epochs_100_100.py"]
model = dict(type="Pix2Pix", generator=dict(type="UnetGenerator"))
