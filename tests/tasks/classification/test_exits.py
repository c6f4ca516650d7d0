from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from taskdistill.core.errors import CheckpointError, ConfigError, DataError
from taskdistill.tasks.classification.exits import (
    answers_of,
    exit_rows,
    main,
    threshold_rows,
)
from taskdistill.tasks.classification.models import CifarResNet  # noqa: F401 - registers it
from taskdistill.tasks.common.cost import count_macs, count_parameters

NETWORK = dict(type="CifarResNet", depth=8, num_classes=3)
EXITS = dict(exits=["layer1", "layer2"], features="layer3", size=(3, 8, 8))


@pytest.fixture
def model(tiny_data):
    made = tiny_data.build(tiny_data.model("SelfTaughtClassifier", network=NETWORK, **EXITS))
    return made.eval()


def write(tiny_data, folder: Path, kind: str = "SelfTaughtClassifier", **options) -> list[str]:
    """A config, and a checkpoint as training writes it."""
    settings = tiny_data.model(kind, network=NETWORK, **(options or EXITS))
    entries = tiny_data.config(settings, task="classification", work_dir=str(folder / "work"))
    model = tiny_data.build(settings)
    config, checkpoint = folder / "config.py", folder / "epoch_1.pth"
    config.write_text(Config(entries).pretty_text)
    side = {"version": 1, "partners": model.partner_state()}
    torch.save(dict(meta={}, state_dict=model.state_dict(), classification=side), checkpoint)
    return [str(config), str(checkpoint)]


def logits_that_say(*rows: tuple[list[int], list[float]]) -> list[Tensor]:
    """Logits of three classes with these answers and top probabilities."""
    made = []
    for classes, tops in rows:
        scores = torch.stack([torch.full((3,), (1 - top) / 2) for top in tops])
        scores[torch.arange(len(classes)), classes] = torch.tensor(tops)
        made.append(scores.log())
    return made


def test_answers_are_the_exits_own(tiny_data, model):
    batches = [tiny_data.batch(4), tiny_data.batch(2)]
    logits, labels = answers_of(model, batches)
    assert labels.tolist() == [0, 1, 2, 0, 0, 1]
    with torch.no_grad():
        for batch, part in zip(batches, (slice(4), slice(4, 6)), strict=True):
            inputs = model.data_preprocessor(batch, False)["inputs"]
            for index in range(3):
                torch.testing.assert_close(logits[index][part], model.exit_at(inputs, index))
    assert not model.training
    with pytest.raises(DataError, match="empty"):
        answers_of(model, [])


def test_rows_of_exits(model):
    labels = torch.tensor([0, 1, 2, 1])
    logits = logits_that_say(
        ([0, 0, 0, 1], [0.9] * 4), ([0, 1, 0, 1], [0.9] * 4), ([0, 1, 2, 0], [0.9] * 4)
    )
    rows = {row.name: row for row in exit_rows(model, logits, labels, rounds=1, threads=1)}
    assert list(rows) == ["exit0", "exit1", "network", "ensemble"]
    assert [rows[n].accuracy for n in ("exit0", "exit1", "network")] == [50.0, 75.0, 75.0]
    assert rows["ensemble"].accuracy == 75.0  # two of three say class 0 of the third
    assert [row.at for row in rows.values()] == ["layer1", "layer2", "(its end)", "(all)"]
    network, heads = model.network, model.exits.heads
    image = torch.zeros(1, 3, 8, 8)
    assert rows["network"].parameters == count_parameters(network)
    assert rows["network"].macs == count_macs(lambda: network(image))
    assert rows["ensemble"].parameters == count_parameters(network) + count_parameters(heads)
    front = [network.conv1, network.bn1, network.layer1, heads[0]]
    assert rows["exit0"].parameters == sum(map(count_parameters, front))
    whole = rows["network"].macs + sum(
        count_macs(lambda h=head, c=c, s=s: h(torch.zeros(1, c, s, s)))
        for head, c, s in zip(heads, (16, 32), (8, 4), strict=True)
    )
    assert rows["ensemble"].macs == whole
    assert rows["exit0"].macs < rows["exit1"].macs < rows["network"].macs
    assert all(row.latency_ms and row.latency_ms > 0 for row in rows.values())
    assert exit_rows(model, logits, labels, rounds=0)[0].latency_ms is None


def test_rows_of_thresholds_by_hand(model):
    labels = torch.tensor([0, 1, 2, 1])
    logits = logits_that_say(
        ([0, 0, 2, 0], [0.95, 0.6, 0.8, 0.5]),
        ([0, 1, 2, 0], [0.9, 0.8, 0.9, 0.6]),
        ([1, 1, 0, 1], [0.4, 0.5, 0.6, 0.7]),
    )
    found = threshold_rows(model, logits, labels, [0.0, 0.75, 1.0])
    image = torch.zeros(1, 3, 8, 8)
    costs = [
        count_macs(lambda p=plan: model.early_exit(image, p))
        for plan in ([0.0, 0.0], [2.0, 0.0], [2.0, 2.0])
    ]
    assert costs[0] < costs[1] < costs[2]
    # All at the first; then samples 0 and 2, sample 1, sample 3; then nobody.
    assert [row.shares for row in found] == [(100, 0, 0), (50, 25, 25), (0, 0, 100)]
    assert [row.accuracy for row in found] == [50.0, 100.0, 50.0]
    wanted = [costs[0], (2 * costs[0] + costs[1] + costs[2]) / 4, costs[2]]
    assert [row.macs for row in found] == pytest.approx(wanted)


def test_rows_of_thresholds_are_what_early_exit_does(tiny_data, model):
    batch = tiny_data.batch(12)
    logits, labels = answers_of(model, [batch])
    threshold = float(logits[0].softmax(1).amax(1).median())
    inputs = model.data_preprocessor(batch, False)["inputs"]
    with torch.no_grad():
        answers, leaving = model.early_exit(inputs, threshold)
    (row,) = threshold_rows(model, logits, labels, [threshold])
    assert 0 < row.shares[0] < 100
    shares = torch.bincount(leaving, minlength=3) * 100 / 12
    assert row.shares == pytest.approx(shares.tolist())
    right = (answers.argmax(1) == labels).float().mean().item()
    assert row.accuracy == pytest.approx(100 * right)


def test_the_command_line(tiny_data, tmp_path, capsys):
    config, checkpoint = write(tiny_data, tmp_path)
    main([config, checkpoint, "--rounds", "0", "--thresholds", "0.4", "0.9"])
    shown = capsys.readouterr().out
    assert "Each exit by itself" in shown and "Leaving by confidence" in shown
    told = json.loads((tmp_path / "work" / "early_exit.json").read_text())
    assert told["images"] == 12 and told["shape"] == [3, 8, 8]
    assert [row["name"] for row in told["exits"]] == ["exit0", "exit1", "network", "ensemble"]
    assert [row["threshold"] for row in told["thresholds"]] == [0.4, 0.9]
    page = (tmp_path / "work" / "early_exit.md").read_text()
    assert page.count("\n| ") == 2 * 2 + 4 + 2  # two headings and rules, the rows
    assert f"{told['exits'][0]['accuracy']:.2f}" in page


def test_what_cannot_be_measured(tiny_data, tmp_path):
    config, checkpoint = write(tiny_data, tmp_path)
    bare = tmp_path / "bare.pth"
    torch.save(torch.load(checkpoint, weights_only=True)["state_dict"], bare)
    with pytest.raises(CheckpointError, match="holds the network alone"):
        main([config, str(bare)])
    with pytest.raises(ConfigError, match="probabilities from 0 to 1"):
        main([config, checkpoint, "--thresholds", "90"])
    with pytest.raises(ConfigError, match="--rounds -1"):
        main([config, checkpoint, "--rounds", "-1"])
    other = tmp_path / "one"
    other.mkdir()
    with pytest.raises(ConfigError, match="OneClassifier, which has no exits"):
        main(write(tiny_data, other, "OneClassifier", at="layer3", size=(3, 8, 8)))
