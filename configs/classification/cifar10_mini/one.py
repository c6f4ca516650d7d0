# ONE (Lan et al. 2018): three branches from the last stage on, their gated ensemble teaches each.
_base_ = "student.py"
model = dict(type="OneClassifier", at="layer3", branches=2, temperature=3.0, ramp_up=0.5)
