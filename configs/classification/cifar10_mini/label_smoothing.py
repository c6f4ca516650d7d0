# A baseline: smoothed labels.
_base_ = "student.py"
model = dict(label_smoothing=0.1)
