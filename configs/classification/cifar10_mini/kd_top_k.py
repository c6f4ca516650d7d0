# kd_cached.py, of the teacher's ten classes only the three most probable and what is left to the
# others: for a thousand classes, ten are 42 bytes a picture.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    cache=dict(path="work_dirs/teacher_cache/cifar10_mini_top_k", views="epochs"),
    task_weights=dict(loss_cls=0.1),
    pairs=[
        dict(student="outputs.logits", loss="TopKKLDivergence", k=3, temperature=4.0, weight=0.9),
    ],
)
