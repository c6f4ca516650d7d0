"""Search a once-for-all generator for its best sub-network under a budget."""

from .cli import main
from .evaluate import SubnetEvaluator
from .evolution import Criterion, Search, SearchResult, Standing, feasible
from .front import Reference, pareto_front, plot_front, read_references
from .macs import MacsTable, macs_of, parse_budget, plain_generator
from .outcome import finetune_config, subnet_config, write_outcome
from .pool import EvaluationPool
from .records import Evaluated, Records, read_evaluations
from .space import Channels, ChannelSpace, encode

__all__ = [
    "ChannelSpace",
    "Channels",
    "Criterion",
    "EvaluationPool",
    "Evaluated",
    "MacsTable",
    "Records",
    "Reference",
    "Search",
    "SearchResult",
    "Standing",
    "SubnetEvaluator",
    "encode",
    "feasible",
    "finetune_config",
    "macs_of",
    "main",
    "pareto_front",
    "parse_budget",
    "plain_generator",
    "plot_front",
    "read_evaluations",
    "read_references",
    "subnet_config",
    "write_outcome",
]
