"""Renders a workflow on a running ComfyUI and downloads the films: an example of use over the API.

    pip install websocket-client
    python render.py text_to_long_video.json --prompt "a lighthouse at dusk" --seconds 60 --seed 7

The workflow is one in API form (this folder, or Export (API) in ComfyUI). Exit code 1: what went wrong was printed.
"""

import argparse
import json
import sys
import uuid
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import websocket


def changed(workflow, options):
    """The workflow with the options in the nodes that have them."""
    sampler = {"seconds": options.seconds, "seed": options.seed}
    values = {"PackForcingSampler": sampler, "CLIPTextEncode": {"text": options.prompt}}
    values["PackForcingTimedPrompts"] = {"timeline": options.prompt}
    for node in workflow.values():
        given = values.get(node["class_type"], {}).items()
        node["inputs"].update((name, value) for name, value in given if value is not None)
    return workflow


def follow(socket, prompt_id, workflow):
    """Prints what the nodes say until the workflow has ended; returns what went wrong, or nothing."""
    while True:
        message = socket.recv()
        if isinstance(message, bytes):
            if int.from_bytes(message[:4], "big") == 3:  # A node's line of text; other kinds are preview pictures.
                print(message[8 + int.from_bytes(message[4:8], "big") :].decode())
            continue
        event = json.loads(message)
        data = event["data"]
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] in ("execution_error", "execution_interrupted"):
            return data.get("exception_message", "interrupted")
        if event["type"] != "executing":
            continue
        if data["node"] is None:  # Said once the history has the films; "execution_success" comes before that.
            return None
        print("--", workflow[data["display_node"]]["class_type"])  # A node may run others in its place.


def download(server, prompt_id, folder):
    """The films that the history names."""
    history = json.load(urlopen(f"http://{server}/history/{prompt_id}"))
    for output in history[prompt_id]["outputs"].values():
        for saved in output.get("images", []):
            path = folder / saved["filename"]
            path.write_bytes(urlopen(f"http://{server}/view?{urlencode(saved)}").read())
            print(f"saved {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--server", default="127.0.0.1:8188")
    parser.add_argument("--prompt")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    workflow = changed(json.loads(options.workflow.read_text(encoding="utf-8")), options)
    client = uuid.uuid4().hex
    socket = websocket.create_connection(f"ws://{options.server}/ws?clientId={client}")
    body = json.dumps({"prompt": workflow, "client_id": client}).encode()
    try:
        request = Request(f"http://{options.server}/prompt", body, {"Content-Type": "application/json"})
        prompt_id = json.load(urlopen(request))["prompt_id"]
    except HTTPError as refused:
        sys.exit(f"refused: {refused.read().decode()}")
    problem = follow(socket, prompt_id, workflow)
    if problem:
        sys.exit(problem)
    download(options.server, prompt_id, options.folder)


if __name__ == "__main__":
    main()
