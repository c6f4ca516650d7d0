# Attention transfer from gradients (Zagoruyko and Komodakis 2017): where the loss reacts to the
# image. Twice the backward pass.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="outputs.input_gradient", loss="GradientAttentionTransfer", weight=0.1),
    ],
)
