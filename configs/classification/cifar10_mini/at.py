# Attention transfer (Zagoruyko and Komodakis 2017) from activations, of all three stages.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="layer?", loss="AttentionTransfer", form="code", weight=1000.0),
    ],
)
