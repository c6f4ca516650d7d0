"""What every task shares whatever it trains with: what a model costs, and demos.

Nothing here imports a training framework: a task needs no other task's.
"""
