"""The ComfyUI nodes: a thin layer over packforcing_core.

loader    PackForcing Model Loader: any Wan2.1 autoregressive checkpoint -> MODEL
kv_cache  PackForcing KV Cache: which past a block may see
sampler   PackForcing Sampler: MODEL + prompt -> a lazy stream of latent blocks
collect   PackForcing Stream to Latent: stream -> LATENT
decode    PackForcing Streaming VAE Decode: stream -> mp4 -> VIDEO
stack     PackForcing Stack Videos: VIDEOs side by side, for comparisons

`host` and `stream` connect to ComfyUI's model handling, `output_paths` names files. What the user sees while a render
runs: `feedback` the progress line, `preview` the newest frames as a moving preview, `watch` events and telemetry,
`cache_panel` the drawing on the KV Cache node, `web/` the front-end code and the help pages.
"""
