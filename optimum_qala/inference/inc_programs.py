"""What runs for each exit of an int8 graph: the graph itself, cut there, or machine code of it."""

from __future__ import annotations

import threading

import torch
from torch import fx
from transformers.utils import logging

from optimum_qala.inference.inc_compile import Program
from optimum_qala.inference.inc_graph import cut_graph
from optimum_qala.quantization.configuration import logit_names


__all__ = ["Programs"]

logger = logging.get_logger(__name__)


class Programs:
    """A graph by the number of layers that run, and what was compiled of it. Threads may share it.

    Args:
        graph: The graph, with the kernels that it runs on.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._cuts: dict[int | None, fx.GraphModule] = {}
        self._compiled: dict[tuple[int | None, int], Program] = {}
        self._lock = threading.Lock()

    @property
    def compiled_exits(self) -> set[int | None]:
        """Numbers of layers, None for all, that are compiled for the threads that torch has now."""
        now = torch.get_num_threads()
        with self._lock:
            return {exit_layer for exit_layer, threads in self._compiled if threads == now}

    def add(self, exit_layer: int | None, threads: int, program: Program) -> None:
        """Keep a compiled program.

        Args:
            exit_layer: Number of layers that it runs; all if None.
            threads: Threads of torch that it was made for.
            program: The program.
        """
        with self._lock:
            self._compiled[exit_layer, threads] = program

    def cut(self, exit_layer: int | None) -> fx.GraphModule:
        """Return the graph without the layers that do not run.

        Args:
            exit_layer: Number of layers that run; all if None.
        """
        with self._lock:
            if exit_layer not in self._cuts:
                self._cuts[exit_layer] = cut_graph(self._graph, logit_names(exit_layer))
            return self._cuts[exit_layer]

    def choose(self, exit_layer: int | None, width: int) -> Program:
        """Return what runs a batch: machine code where some is made for it, else the graph.

        Args:
            exit_layer: Number of layers that run; all if None.
            width: Tokens of the batch's longest row.
        """
        now = torch.get_num_threads()
        with self._lock:
            program = self._compiled.get((exit_layer, now))
            others = sorted(threads for made_for, threads in self._compiled if made_for == exit_layer)
        if program is None and others:
            logger.warning_once(
                f"what is compiled is for {others[-1]} threads, but torch has {now} now, so it runs uncompiled; call "
                "compile() again, or set the threads before it"
            )
        # torch.export takes it for granted that a length that may vary is not 1.
        return self.cut(exit_layer) if program is None or width == 1 else program
