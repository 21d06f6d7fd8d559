"""PackForcing for ComfyUI: minutes of video from block-by-block Wan2.1 models in constant memory.

ComfyUI imports this folder as a package and asks `comfy_entrypoint` for the nodes. Other programs (test collectors,
installers) import the file on its own; then there is no package, and nothing to register.
"""

if __package__:
    from .nodes.needs import unmet

    PROBLEM = unmet()
    if PROBLEM is None:
        from .nodes.extension import comfy_entrypoint

        WEB_DIRECTORY = "./nodes/web"

        __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
    else:
        import logging

        logging.error(PROBLEM)
        NODE_CLASS_MAPPINGS: dict = {}
