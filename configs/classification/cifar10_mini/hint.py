# A hint (Romero et al. 2015) in one stage, as common code does it: the middle layer, through a
# trained 1x1 regressor, beside the labels.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="layer2", loss="Hint", adapter="conv1x1", weight=2.0),
    ],
)
