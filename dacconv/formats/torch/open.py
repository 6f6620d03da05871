"""Files of torch.save and safetensors: which model is in them.

What reads modules is imported where there is one: weights alone do with little more than torch.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dacconv.errors import UsageError
from dacconv.formats.base import LoadOptions, Model
from dacconv.formats.torch.files.checkpoint import read_checkpoint
from dacconv.formats.torch.files.entries import entries
from dacconv.formats.torch.state.file import open_state

WEIGHTS_ALONE = "none"
"""The ``arch`` that keeps a state dict from being recognised."""


def load(path: Path, options: LoadOptions) -> Model:
    """Open a checkpoint: a state dict with ``options.arch`` or without, or a pickled module.

    A state dict whose keys and shapes are those of a known network is opened as that network,
    unless ``options.arch`` is ``none``.

    Raises:
        FormatError: damaged, without weights, or a pickle that is not trusted.
        UsageError: the options do not fit the file.
    """
    checkpoint = read_checkpoint(path, trust_pickle=options.trust_pickle)
    if options.arch is None and entries(checkpoint.content, nn.Module):
        from dacconv.formats.torch.module.pickled import load_module

        return load_module(checkpoint, options)
    if options.arch is not None and isinstance(checkpoint.content, nn.Module):
        raise UsageError("the file holds a whole module, so --arch has no place", where=str(path))
    source = open_state(checkpoint, options)
    facts: tuple[str, ...] = ()
    if options.arch is None:
        from dacconv.formats.torch.state.recognise import recognise

        known = recognise(source, options)
        options, facts = known.options or options, known.facts
    if options.arch not in (None, WEIGHTS_ALONE):
        from dacconv.formats.torch.state.apply import place
        from dacconv.formats.torch.state.model import load_state

        return load_state(source, options, place, facts)
    from dacconv.formats.torch.state.weights import load_weights

    return load_weights(source, options, facts)
