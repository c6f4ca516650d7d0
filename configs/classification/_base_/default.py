# What all classifiers share: mmengine's runner, and accuracy as the figure.
_base_ = "../../_base_/runtime.py"
task = "classification"
default_scope = "mmengine"
custom_imports = dict(imports=["taskdistill.tasks.classification"], allow_failed_imports=False)
val_evaluator = dict(type="Accuracy")
test_evaluator = dict(type="Accuracy")
visualizer = dict(type="Visualizer")
