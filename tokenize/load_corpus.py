"""From a recipe's section `data` to a corpus: each kind and the class that reads it."""

from __future__ import annotations

from ..core import schema_corpora as schema
from .corpora.folder import Folder
from .corpora.gtzan import Gtzan
from .corpora.hub_dataset import HubDataset
from .corpora.maestro import Maestro
from .corpora.magnatagatune import MagnaTagATune
from .corpora.mixed import Mixed
from .corpora.musicnet import MusicNet
from .corpora.nsynth import NSynth
from .corpora.soundfont import SoundFont
from .corpora.synth import Synth
from .corpora.web_dataset import WebDataset
from .corpus import Corpus


def load_corpus(config: schema.Corpus) -> Corpus:
    """The corpus that `config` describes; raises `UserError` if something that it needs is missing."""
    match config:
        case schema.SynthCorpus():
            return Synth(config)
        case schema.FolderCorpus():
            return Folder(config)
        case schema.HubDatasetCorpus():
            return HubDataset(config)
        case schema.WebDatasetCorpus():
            return WebDataset(config)
        case schema.SoundFontCorpus():
            return SoundFont(config)
        case schema.NSynthCorpus():
            return NSynth(config)
        case schema.GtzanCorpus():
            return Gtzan(config)
        case schema.MusicNetCorpus():
            return MusicNet(config)
        case schema.MaestroCorpus():
            return Maestro(config)
        case schema.MagnaTagATuneCorpus():
            return MagnaTagATune(config)
        case schema.MixedCorpus():
            return Mixed([load_corpus(member) for member in config.corpora])
