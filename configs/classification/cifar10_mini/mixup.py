# A baseline: mixup of images and labels (Zhang et al. 2018).
_base_ = "student.py"
model = dict(data_preprocessor=dict(mixing=dict(type="MixUp", alpha=1.0)))
