"""The ComfyUI nodes: a thin layer over packforcing_core.

loader    PackForcing Model Loader: any Wan2.1 autoregressive checkpoint -> MODEL
kv_cache  PackForcing KV Cache: which past a block may see
sampler   PackForcing Sampler: MODEL + prompt -> a lazy stream of latent blocks
collect   PackForcing Stream to Latent: stream -> LATENT
decode    PackForcing Streaming VAE Decode: stream -> mp4 -> VIDEO
stack     PackForcing Stack Videos: VIDEOs side by side, for comparisons

`host` holds the seams to ComfyUI's model handling, `stream` the lazy stream, `output` file names. What the user sees:
`feedback` progress, `preview` the newest frames in motion, `watch` events and telemetry, `window` the plan that the KV
Cache node draws, `web/` the front end's part of it and the help pages.
"""
