# CIFAR-100 as torchvision has it: the folder cifar-100-python in $TASKDISTILL_DATA, or else in
# data/; download=True fetches it.
_base_ = "cifar10.py"
num_classes = 100
data_preprocessor = dict(
    mean=[129.3049, 124.0675, 112.434],
    std=[68.1702, 65.3923, 70.418],
)
train_dataloader = dict(dataset=dict(name="CIFAR100"))
val_dataloader = dict(dataset=dict(name="CIFAR100"))
test_dataloader = val_dataloader
