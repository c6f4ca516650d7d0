# The student of the BCCD table, learning labels that the teacher's predictions assign (LAD, Nguyen
# et al., WACV 2022), and nothing else of it.
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(assignment=dict(scheme="paa"), pairs=[])
