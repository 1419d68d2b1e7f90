"""From a recipe's section `data` to a corpus: each kind and the class that reads it."""

from __future__ import annotations

from ..core import schema
from .corpus import Corpus
from .folder import Folder
from .mixed import Mixed
from .soundfont import SoundFont
from .synth import Synth


def load_corpus(config: schema.Corpus) -> Corpus:
    """The corpus that `config` describes; raises `UserError` if something that it needs is missing."""
    match config:
        case schema.SynthCorpus():
            return Synth(config)
        case schema.FolderCorpus():
            return Folder(config)
        case schema.SoundFontCorpus():
            return SoundFont(config)
        case schema.MixedCorpus():
            return Mixed([load_corpus(member) for member in config.corpora])
