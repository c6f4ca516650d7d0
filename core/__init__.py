"""The part of taskdistill that needs torch alone: losses and the seam they plug into.

- :mod:`taskdistill.core.losses`: one file a method, a pure function and a thin module each.
- :mod:`taskdistill.core.taps`: read a network by module name.
- :mod:`taskdistill.core.adapters`: projectors that find their own shapes.
- :mod:`taskdistill.core.teacher`: the frozen-teacher contract.
- :mod:`taskdistill.core.recipe`: what is matched with what.
- :mod:`taskdistill.core.distiller`: student + teachers + recipe -> named losses.
"""
