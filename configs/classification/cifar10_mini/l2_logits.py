# Ba and Caruana 2014: regression on the logits.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="outputs.logits", loss="L2Logits", weight=0.02),
    ],
)
