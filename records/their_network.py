"""Runs a stranger's network in a process of its own, for verify.py --model FILE --trust-code.

verify.py starts it with a copy of the source that it has read, in an empty folder, with an empty
environment. Requests and answers go through a socket: tokens in, numbers out, nothing that could be
code. All else that the stranger's code does here, printing, exiting, patching torch, ends with this
process.

    a request: MESSAGE (what, rows, columns, first, rate), then rows x columns int32 token ids
        LOGITS   of the positions from `first` on
        APART    the same, where attention returns each position's own value alone
        LEARN    one step of the adaptation, at a rate in units of its first
    an answer: ANSWER (what, rows, positions, pieces), then that many float32; to LEARN no numbers;
        TROUBLE is followed by `rows` bytes of text

Hostile code can still find its way around this: it runs as the same user.
"""

import inspect
import resource
import socket
import struct
import sys
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints
from unittest import mock

import numpy as np

MESSAGE = struct.Struct("<4sIIId")
ANSWER = struct.Struct("<4sIII")
LOGITS = b"LOGI"
APART = b"APAR"
LEARN = b"LEAR"
TROUBLE = b"TROU"


def receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 2**20))
        if not part:
            raise SystemExit  # verify.py has gone
        data += part
    return bytes(data)


def limit_resources(memory: int) -> None:
    """Bytes of memory at most, files of 64 MB at most, and no core dumps."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**26, 2**26))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def build(script: Path, config: dict) -> object:
    """Their GPT; it takes a dataclass of settings or plain arguments, filled by name."""
    module = types.ModuleType("their_model")
    module.__file__ = str(script)
    sys.modules["their_model"] = module
    sys.path.insert(0, str(script.parent))
    exec(compile(script.read_bytes(), str(script), "exec"), module.__dict__)

    names = list(inspect.signature(module.GPT).parameters)
    settings = get_type_hints(module.GPT.__init__).get(names[0])
    if not is_dataclass(settings):
        return module.GPT(**{name: config[name] for name in names if name in config})
    names = [field.name for field in fields(settings)]
    return module.GPT(settings(**{name: config[name] for name in names if name in config}))


def own_value(q: object, k: object, v: object, *_: object, **__: object) -> object:
    """In place of attention: the value of the position itself."""
    return v.repeat_interleave(q.shape[1] // v.shape[1], 1)


class Network:
    """Answers requests with their network."""

    def __init__(self, net: object, adapter: object, device: str):
        import torch

        self.torch = torch
        self.net = net
        self.forward: Callable = getattr(net, "forward_logits", net)
        self.adapter = adapter
        self.device = device

    def logits(self, tokens: np.ndarray, first: int) -> np.ndarray:
        ids = self.torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        with self.torch.no_grad():
            return self.forward(ids)[:, first:].float().cpu().numpy()

    def answer(self, request: tuple, tokens: np.ndarray) -> np.ndarray:
        """Of the kind that is asked for; to LEARN an empty one."""
        what, _, _, first, rate = request
        if what == LEARN:
            self.adapter.step(self.torch.from_numpy(tokens.astype(np.int64)), rate)
            return np.zeros((0, 0, 0), np.float32)
        if what == LOGITS:
            return self.logits(tokens, first)
        name = "scaled_dot_product_attention"
        with mock.patch.object(self.torch.nn.functional, name, own_value):
            return self.logits(tokens, first)


def serve(connection: socket.socket, network: Network) -> None:
    while True:
        request = MESSAGE.unpack(receive(connection, MESSAGE.size))
        what, rows, columns, _, _ = request
        tokens = np.frombuffer(receive(connection, 4 * rows * columns), "<i4")
        numbers = network.answer(request, tokens.reshape(rows, columns))
        connection.sendall(ANSWER.pack(what, *numbers.shape))
        connection.sendall(np.ascontiguousarray(numbers, "<f4").tobytes())


def main(folder: str, script: str, device: str, memory: str, number: str) -> None:
    """verify.py's folder; the script and the artifact lie in the folder that this starts in."""
    connection = socket.socket(fileno=int(number))
    sys.path.insert(0, folder)
    import torch

    from decode_artifact import read_pcll
    from verify import Adapter

    try:
        limit_resources(int(memory))
        config, weights = read_pcll("artifact.pcll")
        net = build(Path(script).resolve(), config)
        net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        net = net.float().eval().to(device)
        forward = getattr(net, "forward_logits", net)
        adapter = Adapter(forward, dict(net.named_parameters()), config, device)
        serve(connection, Network(net, adapter, device))
    except Exception as error:
        text = f"{type(error).__name__} {error}"[:500].encode()
        connection.sendall(ANSWER.pack(TROUBLE, len(text), 0, 0) + text)


if __name__ == "__main__":
    main(*sys.argv[1:])
