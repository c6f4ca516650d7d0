# Logit standardisation (Sun et al. 2024) in front of the softened logits.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    task_weights=dict(loss_cls=0.1),
    pairs=[
        dict(student="outputs.logits", loss="LogitStandardisation", temperature=2.0, weight=9.0),
    ],
)
