# The student of the BCCD table, by three methods together: the patterns of the teacher's pyramid
# channel by channel, the cells where the two differ most, and the classes.
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.cwd}}, {{_base_.gi}}, {{_base_.kd}}])
