"""Adapters from the core to the frameworks people train with; one folder a task."""
