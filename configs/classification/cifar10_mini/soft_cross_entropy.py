# The same as kd.py, written as a cross-entropy: one gradient, another value in the log.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    task_weights=dict(loss_cls=0.1),
    pairs=[
        dict(student="outputs.logits", loss="SoftCrossEntropy", temperature=4.0, weight=0.9),
    ],
)
