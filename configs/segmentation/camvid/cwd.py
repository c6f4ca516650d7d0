# The student of the CamVid table with a teacher: channel-wise.
_base_ = ["student.py", "../_base_/pairs.py"]
distill = dict(
    teacher=dict(
        config="configs/segmentation/camvid/teacher.py",
        checkpoint="work_dirs/demo/camvid/teacher/epoch_16.pth",
    ),
    pairs=[{{_base_.channel_wise}}],
)
