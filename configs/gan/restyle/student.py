# The unpaired demo's student trained alone: the CycleGAN with thin generators.
_base_ = "teacher.py"
model = dict(generator=dict(width=6))
optim_wrapper = dict(generator=dict(optimizer=dict(type="Adam", lr=2e-3, betas=(0.5, 0.999))))
