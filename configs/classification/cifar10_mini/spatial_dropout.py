# A baseline: whole channels dropped after the last two stages.
_base_ = "student.py"
model = dict(drops=[dict(type="SpatialDropout", p=0.1, at=["layer2", "layer3"])])
