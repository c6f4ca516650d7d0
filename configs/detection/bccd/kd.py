# The student of the BCCD table, learning the teacher's scores, most where it is sure.
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.kd}}])
