import pytest

from dacconv.errors import UsageError
from dacconv.jobs.settings_file import read_settings
from dacconv.settings import Settings
from dacconv.support.parsing import parse_arguments, parse_layer_ranks, parse_shapes


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "dac.toml"
        path.write_text(text)
        return path

    return write


def test_a_file_and_the_options_over_it(toml):
    path = toml('rank = 3\nlast-k = 5\nlayers = "conv*"\nmin-saving = "40%"\n')
    assert read_settings(path, {}) == Settings(
        rank=3, last_k=5, layers=("conv*",), min_saving="40%"
    )
    assert read_settings(path, {"energy": 0.9, "first_k": 2}) == Settings(
        energy=0.9, first_k=2, layers=("conv*",), min_saving="40%"
    )


def test_ranks_as_a_table(toml):
    path = toml('[ranks]\n"layer3.*" = 2\nconv1 = 4\n')
    assert read_settings(path, {}).ranks == {"layer3.*": 2, "conv1": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rnak = 2", "the nearest is 'rank'"),
        ("last_kk = 2", "the nearest is 'last-k'"),
        ("rank = 2.5", "2.5 is not int"),
        ("rank = true", "True is not int"),
        ("energy = nan", "not a finite number"),
        ("layers = [1]", "not text or a list"),
        ("rank = ", "not readable as TOML"),
    ],
)
def test_a_file_that_cannot_be(toml, text, words):
    with pytest.raises(UsageError) as caught:
        read_settings(toml(text), {})
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_settings(tmp_path / "no.toml", {})


def test_ranks():
    assert parse_layer_ranks("a=1, b.c=2") == {"a": 1, "b.c": 2}
    for text in ("a", "a=x", "=2", "a=2.5"):
        with pytest.raises(UsageError):
            parse_layer_ranks(text)


def test_shapes():
    assert parse_shapes(("1,3,224,224", "x:0:1x3")) == {"": (1, 3, 224, 224), "x:0": (1, 3)}
    for text in ("", "a:", "1,0,3", "1,-3", "a,b"):
        with pytest.raises(UsageError):
            parse_shapes((text,))


def test_arguments():
    texts = ("a=1", "b=True", "c=[1, 2]", "d=text", 'e="x"', "f=None")
    assert parse_arguments(texts) == {
        "a": 1,
        "b": True,
        "c": [1, 2],
        "d": "text",
        "e": "x",
        "f": None,
    }
    with pytest.raises(UsageError):
        parse_arguments(("a",))


def test_what_differs_from_the_defaults():
    assert Settings(rank=2, layers=("a",)).changed() == {"rank": 2, "layers": ["a"]}
