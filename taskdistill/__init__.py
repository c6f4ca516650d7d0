"""Task-specific knowledge distillation: losses in `core`, framework adapters in `tasks`."""

__version__ = "0.1.0"
