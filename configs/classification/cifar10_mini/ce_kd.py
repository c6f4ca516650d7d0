# Hard and soft labels in one pass over the logits: kd.py, faster.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    task_weights=dict(loss_cls=0.0),
    pairs=[
        dict(student="outputs.logits", loss="CrossEntropyKLDivergence", alpha=0.9, temperature=4.0),
    ],
)
