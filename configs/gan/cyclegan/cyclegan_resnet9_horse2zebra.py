# CycleGAN as in its paper and release: ResNet-9 generators, 70x70 discriminators, instance norm.
_base_ = ["../_base_/default.py", "../_base_/horse2zebra.py", "../_base_/epochs_100_100.py"]
model = dict(type="CycleGAN", generator=dict(type="ResnetGenerator"))
