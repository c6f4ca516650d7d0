# An ensemble as the teacher: the mean of two networks' probabilities.
_base_ = "student.py"
weights = "{{$TASKDISTILL_DATA:data}}/weights"
distill = dict(
    teacher=dict(
        ensemble=[
            dict(
                network=dict(type="CifarResNet", depth=20, num_classes=10),
                checkpoint=weights + "/resnet20-12fca82f.th",
            ),
            dict(
                network=dict(type="CifarResNet", depth=56, num_classes=10),
                checkpoint=weights + "/resnet56-4bfd9763.th",
            ),
        ],
    ),
    task_weights=dict(loss_cls=0.1),
    pairs=[dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, weight=0.9)],
)
