from __future__ import annotations

import torch

from packforcing_core.demo import DEMO_CONFIG, DEMO_SIZE, build_demo_model, build_demo_vae, demo_context


def test_the_demo_has_the_same_weights_in_every_run_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, vae = build_demo_model().net.state_dict(), build_demo_vae().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    for a, b in ((first, build_demo_model().net.state_dict()), (vae, build_demo_vae().state_dict())):
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_words_are_embedded_in_order_whatever_their_case():
    context = demo_context("a Red circle")
    assert context.shape == (1, DEMO_CONFIG.text_len, DEMO_CONFIG.text_dim)
    assert torch.equal(context, demo_context("A red CIRCLE"))
    assert torch.equal(context[0, 1], demo_context("red")[0, 0])
    assert not torch.equal(context, demo_context("a blue circle"))
    assert context[0, 3:].abs().sum() == 0
    assert context[0, :3].std() > 0.5


def test_no_words_and_too_many_are_a_prompt_too():
    assert demo_context("").abs().sum() == 0
    assert demo_context("word " * 100).shape == (1, DEMO_CONFIG.text_len, DEMO_CONFIG.text_dim)


def test_the_demo_size_is_on_the_grid():
    assert all(side % 16 == 0 for side in DEMO_SIZE)
