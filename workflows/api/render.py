"""Renders a workflow on a running ComfyUI and downloads the videos: an example of use over the API.

    pip install websocket-client
    python render.py packforcing_wan_text_to_long_video.json --prompt "a lighthouse at dusk" --seconds 60 --seed 7

The workflow is one in API form (this folder, or Export (API) in ComfyUI). Exit code 1: what went wrong was printed.
Ctrl-C cancels the job on the server; queuing the same again resumes it.
"""

import argparse
import json
import sys
import uuid
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

try:
    import websocket
except ImportError:
    sys.exit("websocket-client is missing: pip install websocket-client")

QUIET_S = 10
"""After so long without a message the server is asked whether the job is still there."""


def read(path):
    """The workflow of a file in API form."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}.")
    except ValueError as error:
        sys.exit(f"{path} is no JSON: {error}.")
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        sys.exit(f"{path} is in the form of the graph editor: export it with Workflow > Export (API).")
    if not isinstance(workflow, dict) or not all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        for node in workflow.values()
    ):
        sys.exit(f"{path} is no workflow in API form: expected nodes with class_type and inputs.")
    return workflow


def changed(workflow, options):
    """The workflow with the options in the nodes that have them."""
    sampler = {"seconds": options.seconds, "seed": options.seed}
    values = {"PackForcingSampler": sampler, "CLIPTextEncode": {"text": options.prompt}}
    if options.prompt is not None:
        values["PackForcingTimedPrompts"] = {"timeline": options.prompt, "prefix": ""}
    for number, node in workflow.items():
        if node["class_type"] in ("CLIPTextEncode", "PackForcingTimedPrompts") and options.prompt is not None:
            print(f"--prompt replaces what node {number} {node['class_type']} has")
        given = values.get(node["class_type"], {}).items()
        node["inputs"].update((name, value) for name, value in given if value is not None)
    return workflow


def address(server):
    """The address with its protocol and without a slash at the end."""
    return (server if "://" in server else f"http://{server}").rstrip("/")


def ask(server, path, body=None):
    """The answer of the server as JSON, or None where it is empty."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{server}{path}", data, {"Content-Type": "application/json"}), timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def queue(server, workflow, client):
    """The id of the queued job; ends the program with the server's reasons where it is refused."""
    try:
        return ask(server, "/prompt", {"prompt": workflow, "client_id": client})["prompt_id"]
    except HTTPError as refused:
        try:
            answer = json.load(refused)
        except ValueError:
            sys.exit(f"refused: HTTP {refused.code} {refused.reason}")
        reasons = [answer.get("error", {}).get("message", "")]
        for number, report in answer.get("node_errors", {}).items():
            where = f"node {number} {report['class_type']}"
            reasons += [f"{where}: {fault['message']}: {fault['details']}" for fault in report["errors"]]
        sys.exit("refused: " + "\n".join(reasons))


def follow(server, socket, prompt_id, workflow):
    """Prints what the nodes say until the workflow has ended; returns what went wrong, or nothing."""
    last, speaker = None, None
    while True:
        try:
            message = socket.recv()
        except websocket.WebSocketTimeoutException:
            if not is_there(server, prompt_id):
                return "the job was deleted by somebody else"
            continue
        if isinstance(message, bytes):
            continue  # Previews.
        event = json.loads(message) if message else {"type": "closed", "data": {}}
        if event["type"] == "closed":
            return "the server closed the connection"
        data = event["data"]
        if event["type"] == "packforcing.monitor" and data["prompt"] == prompt_id and data["text"] not in ("", last):
            last = data["text"]
            if data["node"] != speaker:
                speaker = data["node"]
                print("--", workflow[speaker]["class_type"] if speaker in workflow else f"node {speaker}")
            print(last)
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] in ("execution_error", "execution_interrupted"):
            return data.get("exception_message", "interrupted").strip()
        # Said once the history has the videos; "execution_success" comes before that.
        if event["type"] == "executing" and data["node"] is None:
            return None


def is_there(server, prompt_id):
    """Whether a job waits, runs or has ended."""
    waiting = ask(server, "/queue")
    queued = [item[1] for item in waiting["queue_running"] + waiting["queue_pending"]]
    return prompt_id in queued or prompt_id in ask(server, f"/history/{prompt_id}")


def cancel(server, prompt_id):
    """Takes a job out of the queue, or interrupts it."""
    ask(server, "/queue", {"delete": [prompt_id]})
    ask(server, "/interrupt", {"prompt_id": prompt_id})


def download(server, prompt_id, folder):
    """The videos that the history names."""
    for output in ask(server, f"/history/{prompt_id}").get(prompt_id, {"outputs": {}})["outputs"].values():
        for saved in output.get("images", []):
            path = folder / saved["filename"]
            with urlopen(f"{server}/view?{urlencode(saved)}", timeout=600) as video:
                path.write_bytes(video.read())
            print(f"saved {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path, help="a file in API form")
    parser.add_argument("--server", default="127.0.0.1:8188", help="of ComfyUI: HOST:PORT or a URL (%(default)s)")
    parser.add_argument("--prompt", help="instead of every text in the workflow, timed prompts too")
    parser.add_argument("--seconds", type=float, help="length of the video")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the videos are saved (the current folder)")
    options = parser.parse_args()
    server, prompt_id = address(options.server), None
    workflow = changed(read(options.workflow), options)
    client = uuid.uuid4().hex
    try:
        socket = websocket.create_connection(f"ws{server.removeprefix('http')}/ws?clientId={client}", timeout=QUIET_S)
        prompt_id = queue(server, workflow, client)
        problem = follow(server, socket, prompt_id, workflow)
        if problem:
            sys.exit(problem)
        options.folder.mkdir(parents=True, exist_ok=True)
        download(server, prompt_id, options.folder)
    except KeyboardInterrupt:
        if prompt_id is not None:
            cancel(server, prompt_id)
        sys.exit("cancelled; queuing the same again resumes it")
    except (URLError, OSError, websocket.WebSocketException) as error:
        what = "ended the connection" if prompt_id else "does not answer"
        sys.exit(f"The ComfyUI at {server} {what}: {getattr(error, 'reason', None) or error}. Is it running?")


if __name__ == "__main__":
    main()
