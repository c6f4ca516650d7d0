# The student of the CamVid table with a teacher: pixel-wise and pair-wise.
_base_ = ["student.py", "../_base_/pairs.py"]
distill = dict(
    teacher=dict(
        config="configs/segmentation/camvid/teacher.py",
        checkpoint="work_dirs/demo/camvid/teacher/epoch_16.pth",
    ),
    pairs=[{{_base_.pixel_wise}}, {{_base_.pair_wise}}],
)
