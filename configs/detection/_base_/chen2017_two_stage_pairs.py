# Chen et al., NeurIPS 2017, sections 3.1 to 3.4, on a detector of two stages: both its heads learn
# from the teacher's classes (mu = 0.5 of the hard loss, 1 - mu of the soft one, the background
# weighing 1.5) and are bounded by the teacher's boxes (nu = 0.5).
#
# Classes are averaged over the anchors, or proposals, sampled for the student's own loss, and boxes
# over the same, those of the background counting as 0.
#
# The margin of the bounded regression is an option: codes take 0 to 0.2, and a larger one keeps
# more boxes active.
mu = dict(loss_rpn_cls=0.5, loss_cls=0.5)
hint = dict(student="neck", loss="Hint", adapter="conv1x1", weight=0.5, name="hint")
rpn_cls = dict(
    student="outputs.rpn_cls",
    loss="WeightedSoftCrossEntropy",
    activation="sigmoid",
    weight=0.5,
    name="rpn_cls",
)
rpn_box = dict(
    student="outputs.rpn_box", loss="BoundedRegression", margin=0.0, weight=0.5, name="rpn_box"
)
roi_cls = dict(
    student="outputs.roi_cls",
    loss="WeightedSoftCrossEntropy",
    background=-1,  # mmdet's last class
    weight=0.5,
    name="roi_cls",
)
roi_box = dict(
    student="outputs.roi_box", loss="BoundedRegression", margin=0.0, weight=0.5, name="roi_box"
)
distill = dict(task_weights=mu, pairs=[hint, rpn_cls, rpn_box, roi_cls, roi_box])
