# kd.py on mixed images: the teacher is asked about the mixture.
_base_ = "kd.py"
model = dict(data_preprocessor=dict(mixing=dict(type="MixUp", alpha=1.0)))
