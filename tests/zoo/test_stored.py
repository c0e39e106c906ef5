import pytest

from norton_plugin.errors import SourceError
from norton_plugin.zoo import stored


def test_parts():
    assert stored.parts({"kind": "a", "name": "b"}) == ("a", "b", {})
    assert stored.parts({"kind": "a", "name": "b", "kwargs": None}) == ("a", "b", {})
    assert stored.parts({"kind": "a", "name": "/home/me/ä config.py", "kwargs": {"c": 1}})[2] == {"c": 1}


@pytest.mark.parametrize(
    "value",
    [True, None, 0, -1, 1_000_000, 0.5, -1e8, 1e-300, "", "mean", "regnetx_1.6gf", "max+avg", "0010", "layer-norm"],
)
def test_values_of_models(value):
    stored.check_values("a:b", {"key": value, "keys": [value, (value, {"inner": value})]})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1_000_001, "with 1000001 for 'kwargs.a.b'; expected an integer up to 1000000"),
        (-1_000_001, "expected an integer"),
        (1.1e8, "expected a number up to 1e.08"),
        (float("nan"), "with nan .*expected a number"),
        (float("-inf"), "with -inf .*expected a number"),
        ("a/b", "with 'a/b' for 'kwargs.a.b'; expected a word"),
        ("a.b", "expected a word"),
        ("weights.pth", "expected a word"),
        ("..", "expected a word"),
        ("a b", "expected a word"),
        ("a(b)", "expected a word"),
        ("a:b", "expected a word"),
        ("~", "expected a word"),
        ("ä", "expected a word"),
        ("a\n", "expected a word"),
        ("a\0", "expected a word"),
        ("a" * 201, "expected a word"),
        (b"a", "expected numbers, words"),
        ({1}, "expected numbers, words"),
        (1j, "expected numbers, words"),
        (print, "expected numbers, words"),
    ],
)
def test_other_values(value, message):
    for place in ({"a": {"b": value}}, {"a": {"b": [0, [value]]}}, {"a": {"b": (value,)}}):
        with pytest.raises(SourceError, match=message):
            stored.check_values("kind:name", place)


@pytest.mark.parametrize("key", ["_a", "__init__", "a.b", "a b", "", 1, "ä", "a" * 201, "a\n"])
def test_keys(key):
    with pytest.raises(SourceError, match="expected a name"):
        stored.check_values("kind:name", {"a": [{key: 1}]})


def test_special_keys_hold_other_strings():
    values = {"_scope_": "mmdet", "a": [{"type": "torch.nn.ReLU"}]}
    stored.check_values("kind:name", values, special=("type", "_scope_"))
    for wrong in ("torch.nn.ReLU\n", "t" * 201):
        with pytest.raises(SourceError, match="expected a word"):
            stored.check_values("kind:name", {"type": wrong}, special=("type",))
    with pytest.raises(SourceError, match="expected a word"):
        stored.check_values("kind:name", {"type": {"inner": "torch.nn.ReLU"}}, special=("type",))


def test_bounds():
    def deep(levels):
        return {"a": deep(levels - 1)} if levels > 1 else {}

    stored.check_values("kind:name", deep(32))
    with pytest.raises(SourceError, match="over 20000 values or 32 levels, at 'kwargs.a.a"):
        stored.check_values("kind:name", deep(33))
    stored.check_values("kind:name", {"a": [0] * 19_999})
    with pytest.raises(SourceError, match="over 20000 values or 32 levels, at 'kwargs.a'"):
        stored.check_values("kind:name", {"a": [0] * 20_000})
    loop = []
    loop.append(loop)
    with pytest.raises(SourceError, match="32 levels"):
        stored.check_values("kind:name", {"a": loop})


@pytest.mark.parametrize(
    "value", ["a" * 10**6, 10**5000, [["a" * 1000] * 1000] * 1000, {"k" * 1000: 1}, b"\n" * 1000], ids="abcde"
)
def test_messages_are_short(value):
    text = stored.shown(value)
    assert len(text) < 600 and text.isprintable()


def test_labels_are_short():
    assert stored.label("timm", "resnet18") == "timm:resnet18"
    assert len(stored.label("mmdet", "n" * 4096)) == 203
