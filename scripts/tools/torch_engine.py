#!/usr/bin/env python3
"""An engine of PyTorch alone, for measurements: weights of a given size and a captured CUDA graph behind OpenAI's API.

usage: torch_engine.py --port N [--model NAME] [--gib N] [--seed N]

A token is a number computed from all weights by replaying the graph, so an answer shows a single changed byte. Every weight
is another, and none is zero."""

import argparse, http.server, json, threading, torch


class Network:
    """Square matrices in a row; a step multiplies a vector by each of them, in a CUDA graph."""

    SIDE = 8192

    def __init__(self, gib, seed):
        count = max(1, round(gib * (1 << 30) / (self.SIDE * self.SIDE * 2)))
        torch.manual_seed(seed)
        noise = lambda: torch.randn(self.SIDE, self.SIDE, device="cuda", dtype=torch.bfloat16) * (self.SIDE**-0.5)
        self.layers = [noise() for _ in range(count)]
        self.state = torch.zeros(self.SIDE, 1, device="cuda", dtype=torch.bfloat16)
        self.lock = threading.Lock()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            self.step()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def step(self):
        now = self.state
        for layer in self.layers:
            now = torch.nn.functional.normalize(layer @ now, dim=0) * self.SIDE**0.5
        self.state.copy_(now)

    def tokens(self, prompt, count):
        with self.lock:
            values = torch.arange(self.SIDE, dtype=torch.float32).add(sum(prompt.encode())).sin().unsqueeze(1)
            self.state.copy_(values.to(torch.bfloat16))
            for _ in range(count):
                self.graph.replay()
                words = self.state.view(torch.int16).to(torch.int64)
                yield f" {int((words * torch.arange(1, self.SIDE + 1, device='cuda').unsqueeze(1)).sum()) & 0xFFFFFF:06x}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def reply(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        known = {"/health": {}, "/v1/models": {"object": "list", "data": [{"id": self.server.model, "object": "model"}]}}
        self.reply(known.get(self.path, {"error": {"message": "no such path"}}), 200 if self.path in known else 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        prompt = json.dumps(body.get("messages") or body.get("prompt"))
        words = self.server.network.tokens(prompt, int(body.get("max_tokens") or 16))
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(words)}
            return self.reply({"object": "chat.completion", "model": self.server.model, "choices": [{"index": 0, "message": message, "text": message["content"], "finish_reason": "length"}]})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for word in words:
            event = {"object": "chat.completion.chunk", "model": self.server.model, "choices": [{"index": 0, "delta": {"content": word}}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="torch")
    parser.add_argument("--gib", type=float, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    network = Network(options.gib, options.seed)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.network, server.model = network, options.model
    server.serve_forever()


if __name__ == "__main__":
    main()
