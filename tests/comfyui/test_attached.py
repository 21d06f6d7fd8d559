"""What other nodes attach to a MODEL or a VAE: all of it is honoured, and counts for the render, or is named."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import save_file

from tests.checkpoints import SMALL_STOCK, lora_tensors
from tests.comfyui.graphs import Graph, Link
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stock_loader, stream
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_neighbours import frames_of, render_name

FAST = {"seconds": 1.0, "timesteps": "1000, 500"}
UNREAD = "unread.safetensors"


def rendered(comfy: ComfyServer, files: Files, graph: Graph, model: Link, **settings) -> tuple[np.ndarray, str, str]:
    """Returns (frames, name of the render, what the sampler says) of a short lossless video."""
    latents = stream(graph, model, **{**FAST, **settings})
    node = decode(graph, latents, files, codec="lossless").id
    entry = comfy.client.run(graph.prompt)
    (said,) = entry["outputs"][latents[0]]["text"]
    return frames_of(comfy, entry, node), render_name(entry, latents[0]), said


@pytest.fixture(scope="module")
def unread_lora(comfy: ComfyServer) -> str:
    """A LoRA of this model whose layer names ComfyUI does not read."""
    tensors = {f"base_model.model.{name}": tensor for name, tensor in lora_tensors(SMALL_STOCK, 4, 5).items()}
    save_file(tensors, comfy.models("loras") / UNREAD)
    return UNREAD


def with_unread(graph: Graph, model: Link) -> Link:
    return graph.add("LoraLoaderModelOnly", model=model, lora_name=UNREAD, strength_model=1.0)[0]


def test_an_attention_of_another_node_is_part_of_the_render(comfy: ComfyServer, files: Files):
    """Never are blocks that were sampled with another attention reused."""

    def by(strength: float | None, **settings) -> tuple[np.ndarray, str]:
        graph = Graph()
        model = stock_loader(graph, files)
        if strength is not None:
            model = graph.add("PackForcingTestAttention", model=model, strength=strength)[0]
        frames, name, _ = rendered(comfy, files, graph, model, **settings)
        return frames, name

    plain, weak, weaker = by(None), by(0.7), by(0.3)
    comfy.client.free()
    again = by(0.7)
    print([name for _, name in (plain, weak, weaker, again)])
    assert len({name for _, name in (plain, weak, weaker)}) == 3
    assert again[1] == weak[1]
    for one, other in ((plain, weak), (weak, weaker)):
        difference = np.abs(one[0] - other[0]).mean()
        print(f"mean difference {difference:.1f} of 255")
        assert difference > 1
    assert np.array_equal(again[0], weak[0])
    longer, name = by(0.7, seconds=2.0)  # The node has counted its calls by now.
    assert name.rpartition("-")[0] == weak[1].rpartition("-")[0]
    assert np.array_equal(longer[: len(weak[0])], weak[0])


def test_a_chosen_compute_dtype_is_honoured(comfy: ComfyServer, files: Files):
    def by(dtype: str | None) -> tuple[np.ndarray, str]:
        graph = Graph()
        model = stock_loader(graph, files)
        if dtype:
            model = graph.add("ModelComputeDtype", model=model, dtype=dtype)[0]
        frames, name, _ = rendered(comfy, files, graph, model)
        return frames, name

    plain, same, half = by(None), by("fp32"), by("bf16")
    print(plain[1], same[1], half[1], np.abs(plain[0] - half[0]).max())
    assert plain[1] == same[1]
    assert np.array_equal(plain[0], same[0])
    assert plain[1] != half[1]
    assert 0 < np.abs(plain[0] - half[0]).mean() < 8


@pytest.mark.parametrize(
    ("node", "inputs", "named"),
    [
        ("ModelNoiseScale", {"noise_scale": 8.0}, ("noise_scale 8", "ModelNoiseScale")),
        ("ModelSamplingAuraFlow", {"shift": 5.0}, ("A node set multiplier 1", "ModelSamplingAuraFlow")),
        ("CFGOverride", {"cfg": 3.0, "start_percent": 0.0, "end_percent": 1.0}, ("wrappers", "CFG Override")),
        ("DifferentialDiffusion", {"strength": 1.0}, ("denoise_mask_function", "Differential Diffusion")),
    ],
)
def test_what_would_be_ignored_is_refused_with_the_nodes_name(
    comfy: ComfyServer, files: Files, node: str, inputs: dict, named: tuple[str, ...]
):
    for shift in (0.0, 5.0):  # Also where the sampler's own shift takes the place of the MODEL's.
        graph = Graph()
        model = graph.add(node, model=stock_loader(graph, files), **inputs)[0]
        decode(graph, stream(graph, model, shift=shift, **FAST), files)
        failed(comfy, graph, "PackForcingSampler", "does not support", *named)


def test_a_lora_beside_the_weights_is_refused_with_advice(comfy: ComfyServer, files: Files):
    graph = Graph()
    loader = stock_loader(graph, files)
    model = graph.add("LoraLoaderBypassModelOnly", model=loader, lora_name=files.lora, strength_model=1.0)[0]
    decode(graph, stream(graph, model, **FAST), files)
    failed(comfy, graph, "not merged into the weights", "use Load LoRA, without Bypass")


def test_a_broken_lora_on_an_unused_branch_stops_nothing(comfy: ComfyServer, files: Files):
    (comfy.models("loras") / "broken.safetensors").write_bytes(b"not a LoRA")
    graph = Graph()
    loader = stock_loader(graph, files)
    broken = graph.add("LoraLoaderModelOnly", model=loader, lora_name="broken.safetensors", strength_model=1.0)[0]
    model = graph.add("ComfySwitchNode", switch=False, on_true=broken, on_false=loader)[0]
    _, _, said = rendered(comfy, files, graph, model)
    print(said)
    assert "Warning: the LoRA broken.safetensors: " in said


def merged(graph: Graph, files: Files) -> Link:
    model = with_unread(graph, stock_loader(graph, files))
    return graph.add("ModelMergeSimple", model1=model, model2=stock_loader(graph, files), ratio=1.0)[0]


def switched(graph: Graph, files: Files) -> Link:
    model = with_unread(graph, stock_loader(graph, files))
    return graph.add("ComfySwitchNode", switch=True, on_true=model, on_false=stock_loader(graph, files))[0]


def of_another_pack(graph: Graph, files: Files) -> Link:
    row = {"on": True, "lora": UNREAD, "strength": 0.8}
    return graph.add("PackForcingTestLoras", model=stock_loader(graph, files), lora_1=row)[0]


@pytest.mark.parametrize("wire", [merged, switched, of_another_pack])
def test_a_lora_that_is_perhaps_not_applied_is_a_warning(comfy: ComfyServer, files: Files, unread_lora: str, wire):
    """ComfyUI ignores it without a word, and it is not known in what strength it should be added."""
    graph = Graph()
    plain, _, _ = rendered(comfy, files, graph, stock_loader(graph, files))
    graph = Graph()
    frames, _, said = rendered(comfy, files, graph, wire(graph, files))
    print(said)
    assert f"Warning: ComfyUI does not read the layer names of the LoRA {unread_lora}" in said
    assert "fits" not in said
    assert np.array_equal(frames, plain)


def test_rows_of_loras_that_are_off_say_nothing(comfy: ComfyServer, files: Files, unread_lora: str):
    rows = {
        "lora_1": {"on": False, "lora": unread_lora, "strength": 1.0},
        "lora_2": {"on": True, "lora": unread_lora, "strength": 0},
    }
    graph = Graph()
    model = graph.add("PackForcingTestLoras", model=stock_loader(graph, files), **rows)[0]
    _, _, said = rendered(comfy, files, graph, model)
    assert unread_lora not in said


def test_a_lora_behind_a_node_that_passes_its_model_on_is_used(comfy: ComfyServer, files: Files, unread_lora: str):
    graph = Graph()
    model = with_unread(graph, our_loader(graph, files))
    shifts = [graph.add("PrimitiveFloat", value=5.0)[0] for _ in range(2)]
    shift = graph.add("ComfySwitchNode", switch=True, on_true=shifts[0], on_false=shifts[1])[0]
    model = graph.add("ModelSamplingSD3", model=model, shift=shift)[0]
    _, _, said = rendered(comfy, files, graph, model)
    assert f"Note: the LoRA {unread_lora} uses layer names that ComfyUI does not read" in said


def test_a_lora_whose_name_comes_from_another_node_is_not_checked_and_says_so(comfy: ComfyServer, files: Files):
    graph = Graph()
    names = [graph.add("PrimitiveString", value=files.lora)[0] for _ in range(2)]
    name = graph.add("ComfySwitchNode", switch=True, on_true=names[0], on_false=names[1])[0]
    model = graph.add("LoraLoaderModelOnly", model=stock_loader(graph, files), lora_name=name, strength_model=1.0)[0]
    _, _, said = rendered(comfy, files, graph, model)
    print(said)
    assert "another node chooses the LoRA of" in said


def test_a_compiled_vae_decodes_the_same_and_says_what_is_not_used(comfy: ComfyServer, files: Files):
    def by(compiled: bool) -> tuple[np.ndarray, str]:
        graph = Graph()
        node = decode(graph, stream(graph, stock_loader(graph, files), **FAST), files, codec="lossless")
        if compiled:
            inputs = graph.prompt[node.id]["inputs"]
            inputs["vae"] = graph.add("PackForcingTestCompileVAE", vae=inputs["vae"])[0]
        entry = comfy.client.run(graph.prompt)
        return frames_of(comfy, entry, node.id), entry["outputs"][node.id]["text"][0]

    (plain, said), (same, told) = by(False), by(True)
    assert np.array_equal(plain, same)
    assert "compiled" not in said
    assert "the VAE was compiled by another node" in told
