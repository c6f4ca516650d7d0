"""Networks that teach each other, themselves, or the next of their kind.

Pure functions of logits, and the few modules such methods add to a network:

============ =====================================================================================
`mutual`     peers that learn from each other (Deep Mutual Learning)
`born_again` one generation after the other, and their ensembles
`one`        branches of one network that learn from their gated ensemble
`byot`       early exits of one network that learn from its end (Be Your Own Teacher)
============ =====================================================================================
"""

from .born_again import ensemble_logits
from .byot import BeYourOwnTeacher, ByotOutputs, EarlyExits, ExitHead, byot_losses
from .mutual import mutual_loss, mutual_losses
from .one import Branches, Gate, One, OneOutputs, branch_weights, one_losses, ramp_up

__all__ = [
    "BeYourOwnTeacher",
    "Branches",
    "ByotOutputs",
    "EarlyExits",
    "ExitHead",
    "Gate",
    "One",
    "OneOutputs",
    "branch_weights",
    "byot_losses",
    "ensemble_logits",
    "mutual_loss",
    "mutual_losses",
    "one_losses",
    "ramp_up",
]
