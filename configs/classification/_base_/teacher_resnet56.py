# A ResNet-56 trained on the whole of CIFAR-10 (6.61 % error as published with it; about 83 % right
# on cifar10_mini, a lossy copy). The file is in weights/ of $TASKDISTILL_DATA, or else of data/.
teacher = dict(
    network=dict(type="CifarResNet", depth=56, num_classes=10),
    checkpoint="{{$TASKDISTILL_DATA:data}}/weights/resnet56-4bfd9763.th",
)
