"""Films that begin from a picture, another film or a LATENT, in a real ComfyUI."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from packforcing_core.video import SegmentedWriter, VideoFormat, read_frames
from packforcing_core.video.process import run_ffmpeg
from tests.comfyui.graphs import Graph, Link
from tests.comfyui.server import ComfyServer
from tests.comfyui.small_graphs import Files, decode, our_loader, stream
from tests.comfyui.test_bad_input import failed
from tests.comfyui.test_render import film_of
from tests.films import picture

FAST = {"timesteps": "1000, 500", "seconds": 2.0}


@pytest.fixture(scope="module")
def inputs(comfy: ComfyServer) -> None:
    """boat.png and boat.mp4 in ComfyUI's input folder; both of another size than the render, the film of 24 FPS."""
    folder = comfy.base / "input"
    Image.fromarray(picture(0, 1, 96, 64)[0]).save(folder / "boat.png")
    with SegmentedWriter(folder / "boat.mp4", 96, 64, VideoFormat(fps=24.0)) as writer:
        writer.write(picture(0, 96, 96, 64))
        writer.finish()


def start_from(graph: Graph, **settings) -> Link:
    values = {"mode": "continue", "seconds": 1.5, "denoise": 0.5, "show_source": "auto", **settings}
    return graph.add("PackForcingStartFrom", **values)[0]


def film(comfy: ComfyServer, files: Files, start, **settings) -> tuple[np.ndarray, str]:
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    sampled = stream(graph, our_loader(graph, files), vae=vae, **{**FAST, **settings})
    if start is not None:
        graph.prompt[sampled[0]]["inputs"]["start"] = start(graph)
    node = decode(graph, sampled, files, codec="lossless", filename_prefix="video/start")
    entry = comfy.client.run(graph.prompt)
    frames = np.stack(list(read_frames(film_of(comfy, entry, node.id)))).astype(int)
    return frames, entry["outputs"][sampled[0]]["text"][0]


def load_image(graph: Graph) -> Link:
    return graph.add("LoadImage", image="boat.png")[0]


def load_video(graph: Graph) -> Link:
    return graph.add("LoadVideo", file="boat.mp4")[0]


@pytest.mark.parametrize(("frames_per_block", "still"), [(0, 9), (1, 1)])
def test_a_film_goes_on_from_a_picture(comfy: ComfyServer, files: Files, inputs, frames_per_block: int, still: int):
    begun, told = film(
        comfy, files, lambda g: start_from(g, start_image=load_image(g)), frames_per_block=frames_per_block
    )
    plain, _ = film(comfy, files, None, frames_per_block=frames_per_block)
    print(told.splitlines()[0])
    assert f"the first is given ({still} frames)" in told
    assert len(begun) == len(plain) == 33
    moved = np.abs(np.diff(begun, axis=0)).mean(axis=(1, 2, 3))
    print("movement from frame to frame:", " ".join(f"{value:.1f}" for value in moved[:16]))
    assert np.abs(begun - plain).mean(axis=(1, 2, 3)).min() > 1


def test_a_film_goes_on_from_the_end_of_another_and_shows_what_is_new_only(comfy: ComfyServer, files: Files, inputs):
    with comfy.client.events() as events:
        new, told = film(comfy, files, lambda g: start_from(g, video=load_video(g)))
    progress = [text.split(" | ")[0] for _, text in events.texts]
    print(progress)
    assert [text for text in progress if text.startswith("reading")] == [
        "reading the start", "reading the start: block 1 of 2", "reading the start: block 2 of 2",
    ]  # fmt: skip
    assert not any("reused" in text for text in progress)
    whole, _ = film(comfy, files, lambda g: start_from(g, video=load_video(g), show_source="show"), seconds=3.3125)
    print(told.splitlines()[0])
    assert "after 2 blocks of the start (1.3 s) that the video does not show" in told
    assert (len(new), len(whole)) == (36, 57)
    assert np.array_equal(new, whole[21:])


def test_a_latent_goes_on_as_the_longer_render_would(comfy: ComfyServer, files: Files):
    """The first 4 blocks of 8 as a LATENT: what follows is the same film, since the seed of a block is its place."""

    def from_latent(graph: Graph) -> Link:
        first = stream(graph, our_loader(graph, files), **{**FAST, "seconds": 2.8125})
        samples = graph.add("PackForcingCollectLatents", stream=first)[0]
        return start_from(graph, latent=samples, seconds=3.0, show_source="show")

    begun, told = film(comfy, files, from_latent, seconds=5.8125)
    whole, _ = film(comfy, files, None, seconds=5.8125)
    print(told.splitlines()[0])
    difference = np.abs(begun - whole)
    print(f"largest difference {difference.max()} of 255 over {len(begun)} frames")
    assert difference.max() <= 1  # The LATENT has been unnormalised and normalised again.


def test_of_a_cropped_video_the_part_is_taken_that_it_shows(comfy: ComfyServer, files: Files, inputs):
    def cropped(graph: Graph) -> Link:
        return start_from(graph, video=graph.add("PackForcingTestCrop", video=load_video(graph))[0])

    for start, size in ((cropped, "48x64"), (lambda g: start_from(g, video=load_video(g)), "96x64")):
        _, told = film(comfy, files, start)
        print(told)
        assert f"The start is {size}: scaled" in told


def test_repainting_makes_a_film_over_another(comfy: ComfyServer, files: Files, inputs):
    steps = {"timesteps": "1000, 750, 500, 250", "seconds": 3.3}

    def repainted(denoise: float) -> tuple[np.ndarray, str]:
        settings = {"mode": "video to video", "denoise": denoise}
        return film(comfy, files, lambda g: start_from(g, video=load_video(g), **settings), **steps)

    (light, told), (full, _) = repainted(0.25), repainted(1.0)
    plain, _ = film(comfy, files, None, **steps)
    print(told.splitlines()[0])
    assert "regenerated from noise level 62% in 1 step" in told
    assert np.array_equal(full, plain)
    assert np.abs(light - plain).mean() > 1


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ({}, ("nothing connected",)),
        ({"start_image": load_image, "video": load_video}, ("start_image and video connected",)),
    ],
)
def test_not_one_beginning_is_refused(comfy: ComfyServer, files: Files, inputs, links: dict, words):
    graph = Graph()
    start = start_from(graph, **{name: link(graph) for name, link in links.items()})
    decode(graph, stream(graph, our_loader(graph, files), start=start, **FAST), files)
    failed(comfy, graph, "PackForcingStartFrom", *words)


def test_what_is_changed_of_a_video_on_the_way_in_is_said_on_the_node(comfy: ComfyServer, files: Files, inputs):
    """A clip of a phone: turned by its metadata, pixels that are not square, with sound."""
    phone = comfy.base / "input" / "phone.mp4"
    sound = ("-f", "lavfi", "-i", "sine=duration=4", "-vf", "setsar=4/3", "-c:v", "libx264", "-c:a", "aac")
    run_ffmpeg(["-i", str(comfy.base / "input" / "boat.mp4"), *sound, "-pix_fmt", "yuv420p", str(phone)])
    graph = Graph()
    start = start_from(graph, video=graph.add("LoadVideo", file="phone.mp4")[0])
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    sampled = stream(graph, our_loader(graph, files), vae=vae, start=start, **FAST)
    decode(graph, sampled, files)
    with comfy.client.events() as events:
        outputs = comfy.client.run(graph.prompt)["outputs"]
    (text,), (of_render,) = outputs[start[0]]["text"], outputs[sampled[0]]["text"]
    reading = [told for node, told in events.texts if node == sampled[0] and told.startswith("Reading")]
    print(text, of_render, *reading, sep="\n")
    assert reading == [f"Reading the start: {second} s of 1 s" for second in range(2)], "only the end of 4 s"
    assert "The start is 128x64: scaled to cover 64x32." in of_render
    assert "The start has 24 FPS: converted to 16, at the same speed." in of_render
    assert "Of the clip's 4.0 s the last 1.3 s are used." in of_render
    assert "Its pixels are 4:3, not square: it is stretched to 128 x 64." in text
    assert "The video's sound is ignored." in text
    assert "Encoding the start" in (told for _, told in events.texts)
    graph.prompt[graph.prompt[start[0]]["inputs"]["video"][0]]["inputs"]["file"] = "boat.mp4"
    with comfy.client.events() as events:
        comfy.client.run(graph.prompt)
    of_start = [told for node, told in events.texts if node == start[0]]
    print(of_start)
    assert of_start[-1:] == [""], "what was said of the clip before is removed"


def test_a_picture_without_the_vae_is_refused(comfy: ComfyServer, files: Files, inputs):
    graph = Graph()
    start = start_from(graph, start_image=load_image(graph))
    decode(graph, stream(graph, our_loader(graph, files), start=start, **FAST), files)
    failed(comfy, graph, "PackForcingSampler", "vae input")


def test_more_that_is_given_than_the_film_is_long_is_refused(comfy: ComfyServer, files: Files, inputs):
    graph = Graph()
    vae = graph.add("VAELoader", vae_name=files.vae)[0]
    start = start_from(graph, video=load_video(graph), seconds=3.0, show_source="show")
    decode(graph, stream(graph, our_loader(graph, files), start=start, vae=vae, **FAST), files)
    failed(comfy, graph, "PackForcingSampler", "nothing to sample")
