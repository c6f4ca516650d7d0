# kd.py, the teacher run as a library runs a network that is told nothing: for the comparison of
# docs/performance.md.
_base_ = "kd.py"
distill = dict(
    teacher=dict(precision="fp32", memory_format="contiguous", fold=False),
)
