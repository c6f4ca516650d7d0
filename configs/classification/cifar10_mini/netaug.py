# Network augmentation (Cai et al. 2022): the student is a part of wider ones while it is trained.
_base_ = "student.py"
model = dict(
    type="AugmentedClassifier",
    network=dict(shortcut="B"),
    width=[1.0, 1.6, 2.2],
    expansion=[1.0, 1.6, 2.2],
    expand_only=1,
)
custom_hooks = [dict(type="RecalibrateHook", batches=20)]
