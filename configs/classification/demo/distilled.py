# The demo's student, distilled: softened logits, and where the teacher looks.
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/classification/demo/teacher.py",
        checkpoint="work_dirs/demo/classification/teacher/epoch_10.pth",
    ),
    task_weights=dict(loss_cls=0.1),
    pairs=[
        dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, weight=0.9),
        dict(student="layer?", loss="AttentionTransfer", weight=0.5),
    ],
)
