from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmengine")

from taskdistill.core.errors import CheckpointError  # noqa: E402
from taskdistill.tasks.gan.models import (  # noqa: E402
    MobileResnetGenerator,
    PatchDiscriminator,
    ResnetGenerator,
    SuperMobileResnetGenerator,
    UnetGenerator,
    release_names,
)


def moved(state: dict[str, Tensor], places: dict[int, int]) -> dict[str, Tensor]:
    """The same file with layers of its blocks at other places."""
    result = {}
    for name, value in state.items():
        parts = name.split(".")
        if "conv_block" in parts:
            at = parts.index("conv_block") + 1
            parts[at] = str(places.get(int(parts[at]), int(parts[at])))
        result[".".join(parts)] = value
    return result


def with_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The file that torch 0.3 wrote of a network with instance norms."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.zeros(module.num_features)
            state[f"{name}.running_var"] = torch.ones(module.num_features)
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] is value or torch.equal(found[name], value), name


NETWORKS = [
    lambda: ResnetGenerator(width=4, blocks=3),
    lambda: ResnetGenerator(width=4, blocks=3, norm="batch", dropout=0.5),
    lambda: ResnetGenerator(width=4, blocks=3, padding="zero"),
    lambda: MobileResnetGenerator(channels="4_3_2_5_4_3", blocks=3),
    lambda: MobileResnetGenerator(width=4, blocks=3, norm="batch"),
    lambda: SuperMobileResnetGenerator([[4, 2]] * 8, blocks=3),
    lambda: UnetGenerator(downs=3, width=4),
    lambda: PatchDiscriminator(width=4, norm="instance"),
]


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("parallel", [False, True])
def test_own_names_stay(build, parallel: bool):
    model = build()
    state = dict(model.state_dict())
    given = {f"module.{name}": value for name, value in state.items()} if parallel else state
    before = dict(given)
    same(release_names(given, model), state)
    assert given == before


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("drop_here", [False, True])
def test_the_dropout_layer_is_here_or_there(norm: str, padding: str, drop_here: bool):
    """CycleGAN's file without it into a network with it, gan-compression's the other way."""
    options = dict(width=4, blocks=2, norm=norm, padding=padding)
    here = ResnetGenerator(dropout=0.5 if drop_here else 0.0, **options).eval()
    there = ResnetGenerator(dropout=0.0 if drop_here else 0.5, **options).eval()
    assert set(here.state_dict()) != set(there.state_dict())
    here.load_state_dict(release_names(there.state_dict(), here), strict=True)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(here(images), there(images))


def test_a_mobile_file_without_the_dropout_layer():
    model = MobileResnetGenerator(width=4, blocks=3)
    state = dict(model.state_dict())
    older = moved(state, {6: 5})
    assert "model.10.conv_block.5.conv.0.weight" in older
    same(release_names(older, model), state)


@pytest.mark.parametrize("build", [NETWORKS[0], NETWORKS[3], NETWORKS[5], NETWORKS[7]])
def test_statistics_of_instance_norms_are_dropped(build):
    model = build()
    old = with_statistics(model)
    assert len(old) > len(model.state_dict())
    same(release_names(old, model), dict(model.state_dict()))
    parallel = {f"module.{name}": value for name, value in old.items()}
    same(release_names(parallel, model), dict(model.state_dict()))


def test_all_three_at_once():
    there, here = (
        ResnetGenerator(width=4, blocks=2, dropout=0.5),
        ResnetGenerator(width=4, blocks=2),
    )
    old = {f"module.{name}": value for name, value in with_statistics(there).items()}
    here.load_state_dict(release_names(old, here), strict=True)
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(a, b)


# -- real differences stay -------------------------------------------------------------------------


def test_statistics_of_batch_norms_stay():
    batch = ResnetGenerator(width=4, blocks=2, norm="batch")
    instance = ResnetGenerator(width=4, blocks=2)
    found = release_names(batch.state_dict(), instance)
    same(found, dict(batch.state_dict()))
    with pytest.raises(
        RuntimeError, match=r"Unexpected key.*\"model.2.weight\"(?s:.*)running_mean"
    ):
        instance.load_state_dict(found)
    # Nor are those of instance norms dropped where there is none to have them.
    none = ResnetGenerator(width=4, blocks=2, norm="none")
    assert "model.2.running_mean" in release_names(with_statistics(instance), none)


def test_another_padding_is_another_network():
    reflect = ResnetGenerator(width=4, blocks=2)
    zero = ResnetGenerator(width=4, blocks=2, padding="zero", dropout=0.5)
    same(release_names(reflect.state_dict(), zero), dict(reflect.state_dict()))


def test_other_blocks_are_another_network():
    three, two = ResnetGenerator(width=4, blocks=3), ResnetGenerator(width=4, blocks=2)
    with pytest.raises(RuntimeError, match="Error.* in loading"):
        two.load_state_dict(release_names(three.state_dict(), two))
    mobile = MobileResnetGenerator(width=4, blocks=3)
    with pytest.raises(RuntimeError, match=r"Missing key.*conv_block.1.conv.0.weight"):
        mobile.load_state_dict(release_names(three.state_dict(), mobile))


def test_missing_and_further_entries_stay_so():
    model = ResnetGenerator(width=4, blocks=2)
    state = dict(model.state_dict())
    del state["model.10.conv_block.5.bias"]
    state["extra"] = torch.zeros(1)
    same(release_names(state, model), state)
    some = {f"module.{name}": value for name, value in model.state_dict().items()}
    some["other"] = torch.zeros(1)  # not all have the prefix, so it is a name
    same(release_names(some, model), some)
    assert release_names({}, model) == {}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"state_dict": {}, "meta": {}}, r"\['state_dict', 'meta'\] are none. If this is a whole"),
        ({"weight": 1.0}, "'weight'"),
        ({3: torch.zeros(1)}, r"\[3\]"),
        ([torch.zeros(1)], "got list"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_state_dict(state, message: str):
    with pytest.raises(CheckpointError, match=message):
        release_names(state, ResnetGenerator(width=2, blocks=1))
