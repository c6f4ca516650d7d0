from __future__ import annotations

import torch

from taskdistill.tasks.nlp.data.reading import chosen_classes, logits_only, span_logits


def test_hidden_states_are_not_kept() -> None:
    logits, states = torch.randn(2, 4, 3), (torch.zeros(2, 4, 9),)
    assert logits_only((logits, states), None) is logits
    assert logits_only(logits, None) is logits
    assert torch.equal(chosen_classes((logits, states), None), logits.argmax(-1))
    assert span_logits((logits[..., 0], logits[..., 1], states), None)[1].shape == (2, 4)
