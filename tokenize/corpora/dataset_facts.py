"""What is known of each research dataset before it is there: licence, citation, addresses, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.sections import Split


@dataclass(frozen=True)
class Archive:
    """One file of a dataset at its official address."""

    url: str
    num_bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    @property
    def is_packed(self) -> bool:
        """Whether it has to be unpacked; an index alone is used as it is."""
        return not self.name.endswith((".csv", ".json"))


@dataclass(frozen=True)
class SplitFacts:
    """How much a split of the whole dataset holds."""

    num_clips: int
    hours: float


@dataclass(frozen=True)
class DatasetFacts:
    """One dataset, as its authors publish it."""

    name: str
    licence: str
    """For people."""
    licence_id: str
    """As the Hugging Face Hub spells it."""
    homepage: str
    citation: str
    """BibTeX."""
    splits: Mapping[Split, SplitFacts]
    """The official splits; where there is no official `valid`, the corpus takes one from `train`."""
    archives: tuple[Archive, ...] = ()
    """Empty where there is no stable official address."""
    known_faults: frozenset[str] = frozenset()
    """Ids of clips that are unusable as published."""
    note: str = ""
    """What a user should know of the dataset, in one sentence."""


_NSYNTH = "https://storage.googleapis.com/download.magenta.tensorflow.org/datasets/nsynth"
_MAESTRO = "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0"
_MUSICNET = "https://zenodo.org/records/5120004/files"
_MAGNATAGATUNE = "https://mirg.city.ac.uk/datasets/magnatagatune"

_EMPTY_MP3S = frozenset(
    {
        "6/norine_braun-now_and_zen-08-gently-117-146",
        "8/jacob_heringman-josquin_des_prez_lute_settings-19-gintzler__pater_noster-204-233",
        "9/american_baroque-dances_and_suites_of_rameau_and_couperin-25-"
        "le_petit_rien_xiveme_ordre_couperin-88-117",
    }
)

GTZAN_LISTS = "https://github.com/jordipons/sklearn-audio-transfer-learning/tree/master/data/index/GTZAN"
"""Where the fault-filtered split's three lists are."""

DATASETS: dict[str, DatasetFacts] = {
    "nsynth": DatasetFacts(
        name="NSynth",
        licence="Creative Commons Attribution 4.0",
        licence_id="cc-by-4.0",
        homepage="https://magenta.tensorflow.org/datasets/nsynth",
        citation="""@inproceedings{engel2017neural,
  title = {Neural Audio Synthesis of Musical Notes with {WaveNet} Autoencoders},
  author = {Engel, Jesse and Resnick, Cinjon and Roberts, Adam and Dieleman, Sander and Norouzi, Mohammad
            and Eck, Douglas and Simonyan, Karen},
  booktitle = {International Conference on Machine Learning},
  year = {2017}
}""",
        # A note lasts four seconds.
        splits={
            "train": SplitFacts(289_205, 289_205 * 4 / 3600),
            "valid": SplitFacts(12_678, 12_678 * 4 / 3600),
            "test": SplitFacts(4_096, 4_096 * 4 / 3600),
        },
        archives=(
            Archive(
                f"{_NSYNTH}/nsynth-train.jsonwav.tar.gz",
                23_815_298_079,
                md5="fde6665a93865503ba598b9fac388660",
            ),
            Archive(
                f"{_NSYNTH}/nsynth-valid.jsonwav.tar.gz",
                1_068_767_009,
                md5="87e94a00a19b6dbc99cf6d4c0c0cae87",
            ),
            Archive(
                f"{_NSYNTH}/nsynth-test.jsonwav.tar.gz",
                349_501_546,
                md5="5e6f8719bf7e16ad0a00d518b78af77d",
            ),
        ),
    ),
    "gtzan": DatasetFacts(
        name="GTZAN",
        licence="no licence is stated",
        licence_id="unknown",
        homepage="http://marsyas.info/downloads/datasets.html",
        citation="""@article{tzanetakis2002musical,
  title = {Musical Genre Classification of Audio Signals},
  author = {Tzanetakis, George and Cook, Perry},
  journal = {IEEE Transactions on Speech and Audio Processing},
  volume = {10}, number = {5}, pages = {293--302}, year = {2002}
}
@article{kereliuk2015deep,
  title = {Deep Learning and Music Adversaries},
  author = {Kereliuk, Corey and Sturm, Bob L. and Larsen, Jan},
  journal = {IEEE Transactions on Multimedia},
  volume = {17}, number = {11}, year = {2015}
}""",
        # The fault-filtered split leaves out 70 of the 1000 clips of thirty seconds.
        splits={
            "train": SplitFacts(443, 443 * 30 / 3600),
            "valid": SplitFacts(197, 197 * 30 / 3600),
            "test": SplitFacts(290, 290 * 30 / 3600),
        },
        known_faults=frozenset({"jazz/jazz.00054"}),
        note="jazz.00054 cannot be read in the copies that hold wav files.",
    ),
    "musicnet": DatasetFacts(
        name="MusicNet",
        licence="Creative Commons Attribution 4.0",
        licence_id="cc-by-4.0",
        homepage="https://zenodo.org/records/5120004",
        citation="""@inproceedings{thickstun2017learning,
  title = {Learning Features of Music from Scratch},
  author = {Thickstun, John and Harchaoui, Zaid and Kakade, Sham M.},
  booktitle = {International Conference on Learning Representations},
  year = {2017}
}""",
        # Sums of the column `seconds` of musicnet_metadata.csv.
        splits={"train": SplitFacts(320, 33.7), "test": SplitFacts(10, 0.4)},
        archives=(
            Archive(
                f"{_MUSICNET}/musicnet.tar.gz",
                11_097_394_998,
                md5="844764911fa0d5b97c97da944a057590",
            ),
            Archive(
                f"{_MUSICNET}/musicnet_metadata.csv",
                43_775,
                md5="1caef62cee9c875235e62aac368b49d8",
            ),
        ),
        note="each of the 10 recordings for test is one movement of a piece whose others are in train.",
    ),
    "maestro": DatasetFacts(
        name="MAESTRO v3",
        licence="Creative Commons Attribution Non-Commercial Share-Alike 4.0",
        licence_id="cc-by-nc-sa-4.0",
        homepage="https://magenta.tensorflow.org/datasets/maestro",
        citation="""@inproceedings{hawthorne2019enabling,
  title = {Enabling Factorized Piano Music Modeling and Generation with the {MAESTRO} Dataset},
  author = {Hawthorne, Curtis and Stasyuk, Andriy and Roberts, Adam and Simon, Ian and
            Huang, Cheng-Zhi Anna and Dieleman, Sander and Elsen, Erich and Engel, Jesse and Eck, Douglas},
  booktitle = {International Conference on Learning Representations},
  year = {2019}
}""",
        splits={
            "train": SplitFacts(962, 159.2),
            "valid": SplitFacts(137, 19.4),
            "test": SplitFacts(177, 20.0),
        },
        archives=(
            Archive(
                f"{_MAESTRO}/maestro-v3.0.0.zip",
                108_445_099_632,
                sha256="6680fea5be2339ea15091a249fbd70e49551246ddbd5ca50f1b2352c08c95291",
            ),
        ),
    ),
    "magnatagatune": DatasetFacts(
        name="MagnaTagATune",
        licence="Creative Commons Attribution Non-Commercial Share-Alike 3.0",
        licence_id="cc-by-nc-sa-3.0",
        homepage="https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
        citation="""@inproceedings{law2009evaluation,
  title = {Evaluation of Algorithms Using Games: The Case of Music Tagging},
  author = {Law, Edith and West, Kris and Mandel, Michael and Bay, Mert and Downie, J. Stephen},
  booktitle = {International Society for Music Information Retrieval Conference},
  year = {2009}
}""",
        # The rows of annotations_final.csv by folder; a clip lasts twenty-nine seconds.
        splits={
            "train": SplitFacts(18_709, 18_709 * 29 / 3600),
            "valid": SplitFacts(1_825, 1_825 * 29 / 3600),
            "test": SplitFacts(5_329, 5_329 * 29 / 3600),
        },
        archives=(
            Archive(f"{_MAGNATAGATUNE}/mp3.zip.001", 1_100_000_000),
            Archive(f"{_MAGNATAGATUNE}/mp3.zip.002", 1_100_000_000),
            Archive(f"{_MAGNATAGATUNE}/mp3.zip.003", 772_769_864),
            Archive(f"{_MAGNATAGATUNE}/annotations_final.csv", 21_517_373),
        ),
        known_faults=_EMPTY_MP3S,
        note="three of its mp3 files are empty (0 bytes).",
    ),
}
