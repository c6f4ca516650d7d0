# The once-for-all network of the maps table: 5^8 channel configurations from half the student's
# width to one and a half, each step trains one. The search takes the best that costs no more than
# the student.
_base_ = "student.py"
model = dict(
    generator=dict(
        _delete_=True,
        type="SuperMobileResnetGenerator",
        space=[[24, 20, 16, 12, 8] for _ in range(8)],
    ),
)
max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=8)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1.0,
        end_factor=0.05,
        begin=max_epochs // 2,
        end=max_epochs,
        by_epoch=True,
    )
]
distill = dict(
    teacher=dict(
        config="configs/gan/maps/teacher.py",
        checkpoint="work_dirs/demo/maps/teacher/epoch_12.pth",
    ),
    init=dict(generator="teacher", discriminator="teacher"),
    pairs=[
        dict(
            student="generator.model.9",
            loss="FeatureImitation",
            weight=1.0,
            name="down",
            adapter="sliced",
        ),
        dict(
            student="generator.model.12",
            loss="FeatureImitation",
            weight=1.0,
            name="third_1",
            adapter="sliced",
        ),
        dict(
            student="generator.model.15",
            loss="FeatureImitation",
            weight=1.0,
            name="third_2",
            adapter="sliced",
        ),
        dict(
            student="generator.model.18",
            loss="FeatureImitation",
            weight=1.0,
            name="third_3",
            adapter="sliced",
        ),
    ],
)
# 0.077 of the teacher: what the student of this table costs, far below one fifth.
search = dict(
    budget="0.077x",
    metric="SmallFD",
    method="evolutionary",
    population=32,
    generations=6,
    shape=[128, 128],
    finetune_epochs=4,
)
