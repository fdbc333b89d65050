"""Serve a distilled model with stock classes: python server.py runs/quickstart/model [PORT].

Needs: pip install "optimum-onnx[onnxruntime]". Asked with POST {"inputs": "a text"} (or {"inputs": {"question": …,
"context": …}}), it answers what the pipeline says. One process is one model and one row at a time; start more of them
behind a proxy, which also does TLS and says who may ask.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from optimum import onnxruntime
from optimum.pipelines import pipeline
from transformers import AutoTokenizer

LARGEST = 1_000_000
TASKS = {"ForSequenceClassification": "text-classification", "ForQuestionAnswering": "question-answering"}


def load(folder: str) -> Any:
    """The int8 model of a folder, as the pipeline of its task."""
    built = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["architectures"][0]
    ending = next(name for name in TASKS if built.endswith(name))
    # Without file_name Optimum takes model.onnx, which is fp32 and four times as large.
    model = getattr(onnxruntime, f"ORTModel{ending}").from_pretrained(
        folder, subfolder="onnx", file_name="model_quantized.onnx", local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    settings = {"truncation": True} if ending == "ForSequenceClassification" else {"max_answer_len": 30}
    return pipeline(TASKS[ending], model=model, tokenizer=tokenizer, accelerator="ort", **settings)


def handler(pipe: Any) -> type[BaseHTTPRequestHandler]:
    """Requests to one pipeline."""
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                if not 0 < length <= LARGEST:
                    return self.answer(413, {"error": f"send 1 to {LARGEST} bytes"})
                inputs = json.loads(self.rfile.read(length))["inputs"]
                with turn:
                    return self.answer(200, pipe(**inputs) if isinstance(inputs, dict) else pipe(inputs))
            except (ValueError, TypeError, KeyError) as error:
                return self.answer(400, {"error": f"{type(error).__name__}: {error}"})

        def answer(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


if __name__ == "__main__":
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8080
    with ThreadingHTTPServer(("127.0.0.1", port), handler(load(sys.argv[1]))) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
