# The student of the BCCD table, imitating the teacher's pyramid inside the cells' boxes.
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.imitation}}])
