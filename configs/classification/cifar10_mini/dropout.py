# A baseline: dropout before the classifier.
_base_ = "student.py"
model = dict(drops=[dict(type="Dropout", p=0.2)])
