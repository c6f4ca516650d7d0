# Be your own teacher (Zhang et al. 2019): exits after the first two stages learn from the last.
_base_ = "student.py"
model = dict(
    type="SelfTaughtClassifier",
    exits=["layer1", "layer2"],
    features="layer3",
)
