from __future__ import annotations

import sys
import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from taskdistill.core.errors import CheckpointError, ConfigError
from taskdistill.tasks.classification import networks
from taskdistill.tasks.classification.networks import build_network, is_pretrained


def made_by_a_function(width: int) -> nn.Module:
    return nn.Linear(width, width)


def no_network() -> int:
    return 3


def test_torchvisions_are_built_by_name():
    torch.manual_seed(0)
    ours = build_network(dict(type="torchvision", name="resnet18", num_classes=7))
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_auxiliary_classifiers_are_left_out():
    network = build_network(
        dict(type="torchvision", name="googlenet", num_classes=3, init_weights=False)
    )
    assert isinstance(network(torch.zeros(2, 3, 64, 64)), torch.Tensor) and network.training


def test_a_module_comes_back_as_it_is(tiny_network):
    assert build_network(tiny_network) is tiny_network


def test_classes_and_functions(tiny_network):
    assert build_network(dict(type=type(tiny_network), width=2)).conv1.out_channels == 2
    linear = build_network(dict(type="torch.nn:Linear", in_features=2, out_features=5))
    assert linear.out_features == 5
    assert build_network(dict(type=made_by_a_function, width=3)).in_features == 3


def test_registered_classes():
    from mmengine.registry import MODELS

    MODELS.register_module(name="TestOnlyNetwork", module=nn.Linear, force=True)
    try:
        config = dict(type="TestOnlyNetwork", in_features=1, out_features=2)
        assert isinstance(build_network(config), nn.Linear)
        with pytest.raises(ConfigError, match="Did you mean 'TestOnlyNetwork'"):
            build_network(dict(type="TestOnlyNetwrk"))
    finally:
        del MODELS.module_dict["TestOnlyNetwork"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (3, "a module or a dict with 'type', got 3"),
        (dict(name="resnet18"), "a dict with 'type'"),
        (dict(type="torchvision"), "needs its name"),
        (dict(type="torchvision", name="resnet19"), "no classifier 'resnet19'.*'resnet1"),
        (dict(type="torchvision", name="fcn_resnet50"), "no classifier 'fcn_resnet50'"),
        (dict(type="torchvision", name="resnet18", depth=3), "cannot be built.*'depth'"),
        (dict(type="torchvision", name="resnet18", weights="IMAGENET"), "no weights 'IMAGENET'"),
        (dict(type="torchvison", name="resnet18"), "Did you mean 'torchvision'"),
        (dict(type="torch.nn:Liner"), "no class or function 'Liner'. Did you mean 'Linear'"),
        (dict(type="torch.nm:Linear"), "'torch.nm' cannot be imported"),
        (dict(type="torch.nn:Linear", in_features=2), "cannot be built.*out_features"),
        (dict(type=no_network), "gave a int"),
    ],
)
def test_mistakes_are_told(config, message):
    with pytest.raises(ConfigError, match=message):
        build_network(config)


def test_a_network_of_an_absent_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'taskdistill\[classification\]'"):
        build_network(dict(type="timm", name="resnet18"))


def test_timms_are_built_by_name():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = build_network(dict(type="timm", name="mobilenetv3_small_050", num_classes=4))
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=4)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    with pytest.raises(ConfigError, match="Did you mean .*'mobilenetv3_small_050'"):
        build_network(dict(type="timm", name="mobilnetv3_small_050"))
    with pytest.raises(ConfigError, match="cannot be built"):
        build_network(dict(type="timm", name="mobilenetv3_small_050", depht=4))


# -- pretrained weights ----------------------------------------------------------------------------


def no_connection(*args, **kwargs):
    raise urllib.error.URLError("no route")


def test_a_failed_download_is_one_message(monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_connection)
    monkeypatch.setattr(
        torchvision._internally_replaced_utils,
        "load_state_dict_from_url",
        no_connection,
        raising=False,
    )
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_connection)
    config = dict(type="torchvision", name="squeezenet1_1", weights="DEFAULT", num_classes=3)
    with pytest.raises(CheckpointError, match="'squeezenet1_1' cannot be had.*no route.*load_from"):
        build_network(config)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_pretrained_networks_get_a_layer_of_other_classes(monkeypatch, name):
    """What would be downloaded is put in its place."""
    torch.manual_seed(0)
    released = torchvision.models.get_model(name).state_dict()
    monkeypatch.setattr(
        torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: released
    )
    whole = build_network(dict(type="torchvision", name=name, weights="DEFAULT"))
    assert all(torch.equal(v, released[k]) for k, v in whole.state_dict().items())
    network = build_network(
        dict(type="torchvision", name=name, weights="IMAGENET1K_V1", num_classes=5)
    )
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    state = network.state_dict()
    other = [k for k, v in released.items() if state[k].shape != v.shape]
    assert len(other) == 2
    assert all(torch.equal(state[k], v) for k, v in released.items() if k not in other)
    plain = torchvision.models.get_model(name, num_classes=5)
    plain.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (nn.Identity(), False),
        (dict(type="torchvision", name="resnet18"), False),
        (dict(type="torchvision", name="resnet18", weights=None), False),
        (dict(type="torchvision", name="resnet18", weights="IMAGENET1K_V1"), True),
        (dict(type="timm", name="resnet18", pretrained=True), True),
        (dict(type="timm", name="resnet18", checkpoint_path="a.pth"), True),
        (dict(type="timm", name="resnet18", pretrained=False), False),
        (dict(type="CifarResNet", depth=20), False),
        (dict(type="package:name", pretrained=True), True),
    ],
)
def test_what_is_pretrained(config, expected):
    assert is_pretrained(config) is expected
    assert networks.is_pretrained is is_pretrained
