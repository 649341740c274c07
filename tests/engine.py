"""The engine inside one process, for tests that need hundreds of them: the real Reader on a thread, the real Worker, a real pool between.

What tests/pipeline adds are the processes; everything that computes or moves bytes is the same code.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from types import TracebackType

import torch
import zmq

from potatod import manifest as manifests
from potatod import model_folder, pool, wire
from potatod import plan as plans
from potatod.config import Settings
from potatod.messages import Drop, Fork, Step, Stop, Sweep
from potatod.reader.reader import Reader
from potatod.stage import Boot, Stage
from potatod.verdict import vocabulary_of
from potatod.worker import arithmetic
from potatod.worker.arithmetic import Arithmetic
from potatod.worker.lenders import torch_device
from potatod.worker.probe import weight_shapes
from potatod.worker.worker import Stopped, Worker

#: Open files above which what is over is collected: select() takes no more than 1024.
_MANY_FILES = 300

_found: dict[object, Arithmetic] = {}


def arithmetic_for(manifest: manifests.Manifest, kernels: str, batching: str, tile: int, device: torch.device) -> Arithmetic:
    """As the probe finds it, remembered: families share shapes."""
    dtype = getattr(torch, manifest.dtype)
    shapes = weight_shapes(manifest) if (kernels, batching) == ("invariant", "packed") else []
    stored = frozenset(manifests.schemes_of(manifest))

    def found(shape: tuple[int, int] | None) -> Arithmetic:
        key = (kernels, shape, dtype, device, stored)
        if key not in _found:
            _found[key] = arithmetic.find(kernels, [shape] if shape else [], dtype, device, stored)
        return _found[key]

    groupings = {shape: grouping for each in shapes for shape, grouping in found(each).groupings.items()}
    return dataclasses.replace(found(None), groupings=groupings, tile=tile)


class Engine:
    """``with Engine(folder, pool_bytes, kernels="invariant") as engine: engine.sweep(...)``."""

    def __init__(
        self, folder: Path, pool_bytes: int, *, kernels: str = "invariant", batching: str = "packed", tile: int = 8, device: str = "cpu",
        max_sequences: int = 8, card_bytes: int | None = None, kv: str | None = None,
    ) -> None:  # fmt: skip
        """``card_bytes``: of the memory of a ``device`` that is not the cpu, for weights; ``kv``: what keys and values are kept as."""
        manifest = model_folder.load(folder)
        model_folder.check_files(folder, manifest)
        self.plan = plans.make(manifest, pool_bytes, card_bytes)
        settings = Settings()
        settings = dataclasses.replace(settings, worker=dataclasses.replace(settings.worker, kernels=kernels, threads=1))
        self._directory = tempfile.TemporaryDirectory(prefix="pt-")
        directory = Path(self._directory.name)
        verdict = {
            "batching": batching,
            "arithmetic": arithmetic_for(manifest, kernels, batching, tile, torch_device(device)).keeping(kv).to_json(),
            "vocabulary": vocabulary_of(manifest),
            "device": device,
            "verify": "always",
            "draft": None,
        }
        boot = Boot(1, str(directory), str(folder), settings, self.plan, verdict)
        self._context = zmq.Context()
        self._control = wire.control_router(self._context, directory)
        pool_fd = pool.create(self.plan.pool_bytes)
        logits_fd = pool.create(max_sequences * verdict["vocabulary"] * 4)
        self._logits = torch.frombuffer(pool.Pool(os.dup(logits_fd)).view, dtype=torch.float32).view(max_sequences, -1)
        self._worker_stage = Stage("worker", boot, {"pool": os.dup(pool_fd), "logits": logits_fd})
        self.worker = Worker(self._worker_stage)  # binds; whoever connects after it waits for nothing
        self._reader_stage = Stage("reader", boot, {"pool": pool_fd})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self.reader_error: BaseException | None = None
        self._reader.start()
        self.front = wire.sweeps_wire(self._context, directory, 1, bind=False)
        self.front.send(Drop(0))  # as soon as this has come through the worker has a peer to talk to
        assert self.worker._front.wait(10)
        self._number = 0
        self._held: dict[int, int] = {}
        #: whether the last sweep was more than the device's memory holds
        self.exhausted = False

    def _read(self) -> None:
        try:
            with closing(Reader(self._reader_stage, self.plan)) as reader:
                reader.run()
        except BaseException as error:
            self.reader_error = error
            self._worker_stage.stopping = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._control.send(b"reader", Stop())
        self._reader.join(10)
        self.worker.close()
        for stage in (self._reader_stage, self._worker_stage):
            stage.context.destroy(linger=0)
        self._control.close()
        self.front.close()
        self._context.destroy(linger=0)
        self._directory.cleanup()
        if len(os.listdir("/proc/self/fd")) > _MANY_FILES:  # a model's hooks refer to it in circles, and it refers to the pool
            del self.worker
            gc.collect()

    def sweep(self, steps: dict[int, list[int]], want: str = "logits", known: dict[int, int] | None = None) -> dict[int, torch.Tensor | int]:
        """Feeds each sequence its tokens behind what it holds; the last row's logits (vocabulary,) or likeliest token of each.

        ``known``: tokens of a sequence whose prompt goes on in later sweeps.
        """
        self._number += 1
        if self.reader_error is not None:
            raise self.reader_error
        made = []
        for sequence, tokens in steps.items():
            start = self._held.get(sequence, 0)
            made.append(Step(sequence, start, tuple(tokens), (known or {}).get(sequence, start + len(tokens)), want))
        sweep = Sweep(1, self._number, tuple(made))
        try:
            rows = self.worker.serve(sweep)
        except Stopped:
            raise self.reader_error or AssertionError("stopped without a reason") from None
        self.exhausted = rows.exhausted
        for sequence, tokens in steps.items() if not self.exhausted else ():
            self._held[sequence] = self._held.get(sequence, 0) + len(tokens)
        return {
            row.sequence: row.token if row.logits_row is None else self._logits[row.logits_row].clone() for row in rows.rows
        }

    def fork(self, sequence: int, of: int, length: int) -> None:
        """A new sequence that begins with the first ``length`` tokens of another one."""
        self.worker.fork(Fork(sequence, of, length))
        self._held[sequence] = length

    def held(self, sequence: int) -> int:
        """Tokens whose KV the worker holds."""
        return self._held.get(sequence, 0)

    def drop(self, sequence: int) -> None:
        self._held.pop(sequence, None)
        self.worker.forget(Drop(sequence))

    def greedy(self, sequence: int, prompt: list[int], count: int) -> list[int]:
        """``count`` likeliest tokens after the prompt, one sweep each."""
        tokens = [self.sweep({sequence: prompt}, "argmax")[sequence]]
        while len(tokens) < count:
            tokens.append(self.sweep({sequence: [tokens[-1]]}, "argmax")[sequence])
        return tokens
