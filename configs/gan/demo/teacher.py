# The demo's teacher: the same network, several times as wide.
_base_ = "student.py"
model = dict(generator=dict(width=24))
optimizer = dict(type="Adam", lr=1e-3, betas=(0.5, 0.999))
optim_wrapper = dict(generator=dict(optimizer=optimizer))
