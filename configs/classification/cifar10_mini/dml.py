# Deep mutual learning (Zhang et al. 2018): two of them teach each other; the first is deployed.
_base_ = "student.py"
model = dict(type="MutualClassifier", peers=1)
