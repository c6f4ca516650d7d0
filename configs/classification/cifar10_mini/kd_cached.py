# kd.py, the teacher remembered: it is asked about each of the pictures that training will see once,
# and read from then on. Seeds share the pictures (cache.seed), not the student or their order.
_base_ = "kd.py"
distill = dict(cache=dict(path="work_dirs/teacher_cache/cifar10_mini_kd", views="epochs"))
