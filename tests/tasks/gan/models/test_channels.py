from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmengine")

from taskdistill.core.errors import ConfigError  # noqa: E402
from taskdistill.tasks.gan.models import format_channels, parse_channels, parse_space  # noqa: E402
from taskdistill.tasks.gan.models.channels import STAGES, check_member  # noqa: E402

widths = st.integers(1, 512)


@given(st.lists(widths, min_size=8, max_size=8))
def test_round_trip(channels: list[int]):
    text = format_channels(channels)
    assert text == "_".join(map(str, channels))
    assert parse_channels(text) == parse_channels(channels) == tuple(channels)


@given(st.lists(widths, min_size=6, max_size=6))
def test_six_give_all_blocks_one_width(channels: list[int]):
    stem, down1, down2, blocks, up1, up2 = channels
    assert parse_channels(channels) == (stem, down1, down2, blocks, blocks, blocks, up1, up2)


def test_there_is_a_name_for_each_number():
    assert len(STAGES) == 8


@pytest.mark.parametrize(
    "channels",
    ["", "16", "16_16_16_16_16_16_16", [16] * 9, [], None, 16, {16}, "16-16-16-16-16-16"],
)
def test_wrong_counts(channels):
    with pytest.raises(ConfigError, match="8 whole numbers, one for each of stem, down1.* or 6"):
        parse_channels(channels)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ("16_16_x_16_16_16_16_16", r"channels\[down2\] must be a whole number >= 1, got 'x'"),
        ("16_16_16_0_16_16", r"channels\[blocks1\].* got 0"),
        ("16_16_16_16_16_-4", r"channels\[up2\].* got '-4'"),
        ([16, 16.0, 16, 16, 16, 16], r"channels\[down1\].* got 16.0"),
        ([16, 16, 16, 16, 16, True], r"channels\[up2\].* got True"),
    ],
)
def test_wrong_numbers(channels, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_channels(channels)


def test_a_space_keeps_its_order():
    space = [[16, 32, 24], *[[8]] * 7]
    assert parse_space(space) == ((16, 32, 24), *[(8,)] * 7)
    assert parse_space(parse_space(space)) == parse_space(space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([[16]] * 6, "8 lists of widths, one for each of stem"),
        ([16] * 8, "8 lists of widths"),
        ("16_16_16_16_16_16_16_16", "8 lists of widths"),
        (["16"] * 8, "8 lists of widths"),
        (None, "8 lists of widths"),
        ([*[[16]] * 7, []], "no width for up2"),
        ([[16], [16, 16], *[[16]] * 6], r"a width twice for down1: \[16, 16\]"),
        ([[16], [16, 0], *[[16]] * 6], r"space\[down1\]\[1\] must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_spaces(space, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_space(space)


def test_members():
    space = [[8, 4]] * 8
    assert check_member("8_4_8_4_8_4_8_4", space) == (8, 4, 8, 4, 8, 4, 8, 4)
    with pytest.raises(ConfigError, match=r"8_4_6_.* is not in the space: down2 is 6, .* \[8, 4\]"):
        check_member("8_4_6_4_8_4_8_4", space)
