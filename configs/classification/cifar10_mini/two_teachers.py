# Two teachers at once, each with its own line; the weights add up to those of kd.py.
_base_ = "student.py"
weights = "{{$TASKDISTILL_DATA:data}}/weights"
distill = dict(
    teachers=dict(
        resnet56=dict(
            network=dict(type="CifarResNet", depth=56, num_classes=10),
            checkpoint=weights + "/resnet56-4bfd9763.th",
        ),
        resnet20=dict(
            network=dict(type="CifarResNet", depth=20, num_classes=10),
            checkpoint=weights + "/resnet20-12fca82f.th",
        ),
    ),
    task_weights=dict(loss_cls=0.1),
    pairs=[
        dict(
            student="outputs.logits",
            of="resnet56",
            loss="KLDivergence",
            temperature=4.0,
            weight=0.45,
            name="from_56",
        ),
        dict(
            student="outputs.logits",
            of="resnet20",
            loss="KLDivergence",
            temperature=4.0,
            weight=0.45,
            name="from_20",
        ),
    ],
)
