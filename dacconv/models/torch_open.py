"""Files of torch.save and safetensors: which model is in them.

What reads modules is imported where there is one: weights alone do with little more than torch.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dacconv.errors import UsageError
from dacconv.models.base import LoadOptions, Model
from dacconv.models.torch_entries import entries
from dacconv.models.torch_files import read_checkpoint
from dacconv.models.torch_statefile import open_state


def load(path: Path, options: LoadOptions) -> Model:
    """Open a checkpoint: a state dict with ``options.arch`` or without, or a pickled module.

    Raises:
        FormatError: damaged, without weights, or a pickle that is not trusted.
        UsageError: the options do not fit the file.
    """
    checkpoint = read_checkpoint(path, trust_pickle=options.trust_pickle)
    if options.arch is None and entries(checkpoint.content, nn.Module):
        from dacconv.models.torch_module import load_module

        return load_module(checkpoint, options)
    if options.arch is not None and isinstance(checkpoint.content, nn.Module):
        raise UsageError("the file holds a whole module, so --arch has no place", where=str(path))
    source = open_state(checkpoint, options)
    if options.arch is not None:
        from dacconv.models.torch_apply import place
        from dacconv.models.torch_state import load_state

        return load_state(source, options, place)
    from dacconv.models.torch_weights import load_weights

    return load_weights(source, options)
