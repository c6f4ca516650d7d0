# The student of the BCCD table, by what helps it most together: the patterns of the teacher's
# pyramid, channel by channel, and its boxes.
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.pkd}}, {{_base_.cwd}}, {{_base_.ld}}])
