# kd.py, the teacher in bfloat16 whatever is fastest here; students and losses stay in float32.
_base_ = "kd.py"
distill = dict(teacher=dict(precision="bf16", memory_format="channels_last"))
